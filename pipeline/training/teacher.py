"""The teacher of a task: a model fine-tuned on it, or a classifier adopted after validation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from pipeline.config.corpus import Kind, Split
from pipeline.config.errors import PipelineError, PipelineErrors, errors_of
from pipeline.config.settings import TeacherSettings, TrainingSettings
from pipeline.corpus.encoding import Batch, Ids, Integers, Types, check_length, collate, encode
from pipeline.corpus.task import Floats, Task, constant_prediction, measure
from pipeline.models.architectures import head_settings, reject_unsupported
from pipeline.models.folder import ModelFolder
from pipeline.models.forward import Scale, logits_from_ids, logits_of_rows, pick_device
from pipeline.models.loading import (
    check_classifier,
    check_outputs,
    check_token_types,
    check_values,
    check_vocabulary,
    load_classifier,
)
from pipeline.store.files import folder_written_whole
from pipeline.training.callbacks import NO_CHECKPOINTS, RunOptions
from pipeline.training.order import Lengths, MicroBatch
from pipeline.training.trainer import Objective, TrainDev, fine_tune, label_loss, write_history

BATCH_SIZE = 64
"""Rows per batch when an adopted teacher is evaluated on dev."""


@dataclass(frozen=True)
class Examples:
    """Encoded examples of one split with their labels; rows without a label are left out."""

    input_ids: list[Ids]
    token_type_ids: list[Types] | None
    labels: Floats
    pad_token_id: int

    @classmethod
    def read(cls, prepared: Path, split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> "Examples":
        """Tokenise a prepared split."""
        table = pq.read_table(prepared / f"{split}.parquet")
        columns = table.filter(table["label"].is_valid()).to_pydict()
        encoded = encode(tokenizer, columns["text_a"], columns.get("text_b"), max_length)
        labels = np.array(columns["label"], dtype=np.float64)
        return cls(encoded.input_ids, encoded.token_type_ids, labels, int(tokenizer.pad_token_id))

    def lengths(self) -> Lengths:
        return np.array([len(ids) for ids in self.input_ids], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.input_ids)

    def batch(self, rows: MicroBatch) -> Batch:
        """Inputs and labels of a micro-batch."""
        return self.inputs_at(rows.rows) | {"labels": torch.from_numpy(self.labels[rows.rows].astype(np.float32))}

    def inputs_at(self, positions: Integers) -> Batch:
        """Model inputs of some rows."""
        types = None if self.token_type_ids is None else [self.token_type_ids[row] for row in positions]
        return collate([self.input_ids[row] for row in positions], types, self.pad_token_id)


def teach(
    prepared: Path, settings: TeacherSettings, training: TrainingSettings, out: Path, options: RunOptions = NO_CHECKPOINTS
) -> float:
    """Make the teacher of a task and write it to ``out``; returns its dev metric."""
    task, folder = Task.read(prepared), ModelFolder(settings.model)
    if errors := teacher_errors(folder, settings, task.name, task.kind, task.labels, task.pair):
        raise PipelineError(errors[0]) if len(errors) == 1 else PipelineErrors(f"teacher of {task.name}", errors)
    tokenizer = folder.tokenizer
    tokenizer.model_max_length = settings.max_length  # later stages truncate texts at the length in the saved copy
    dev = Examples.read(prepared, "dev", tokenizer, settings.max_length)
    if settings.fine_tune:
        train = Examples.read(prepared, "train", tokenizer, settings.max_length)
        model, history = _fine_tuned(task, folder, train, dev, training, options)
        dev_value = history[-1]["dev"]
    else:
        model, history = load_classifier(folder), []
        model.to(pick_device())  # type: ignore[arg-type]
        dev_value = measure(task, dev.labels, logits_of_rows(model, dev.lengths(), dev.inputs_at, BATCH_SIZE))
        model.to("cpu")  # type: ignore[arg-type]
    if dev_value <= (trivial := measure(task, dev.labels, constant_prediction(task, dev.labels))):
        remedy = "; lower teach.learning_rate if it is above 5.0e-5, else train longer" if settings.fine_tune else ""
        found = f"{task.metric} {dev_value:.4f} on dev, a constant prediction has {trivial:.4f}"
        print(f"note: teacher of {task.name}: {found}; students will learn as little{remedy}", flush=True)
    with folder_written_whole(out) as written:
        model.config.update(head_settings(task))
        model.save_pretrained(written)
        tokenizer.save_pretrained(written)
        task.save(written)
        write_history(written, history)
    return dev_value


def teacher_errors(
    folder: ModelFolder, settings: TeacherSettings, task: str, kind: Kind, labels: tuple[str, ...] | None, pair: bool
) -> list[str]:
    """Every reason why a model cannot teach a task, from its configuration, its tokenizer and the names of its weights.

    ``task`` is the task's name. ``labels`` are in order; they are empty for regression and None if they are not known yet.
    """
    try:
        reject_unsupported(folder.config, folder.source)
    except PipelineError as error:  # every other check would say the same
        return [str(error)]
    checks: list[Callable[[], object]] = [lambda: check_classifier(folder, new_head=settings.fine_tune)]
    if not settings.fine_tune and kind == "regression":
        checks += [lambda: check_values(folder)]
    if not settings.fine_tune and labels is not None:
        checks += [lambda: check_outputs(folder, task, kind, labels)]
    try:
        tokenizer, longest = folder.tokenizer, folder.longest_input
    except PipelineError as error:
        return [*errors_of(*checks), str(error)]
    found = errors_of(*checks)
    if settings.max_length > longest:
        found.append(f"max_length is {settings.max_length}, but {folder.source} takes at most {longest} tokens")
    return found + errors_of(
        lambda: check_length(tokenizer, pair, settings.max_length, str(folder.source)),
        lambda: check_vocabulary(folder),
        lambda: check_token_types(folder, pair),
        folder.check_saving,
    )


def _fine_tuned(
    task: Task, folder: ModelFolder, train: Examples, dev: Examples, training: TrainingSettings, options: RunOptions
) -> tuple[PreTrainedModel, list[dict[str, float]]]:
    if not len(train):
        raise PipelineError(
            f"no training example of {task.name} has a label, so no teacher can be fine-tuned; "
            "name a classifier that is already fine-tuned and set teacher.fine_tune: false"
        )
    set_seed(training.seed % 2**32)  # a new head starts from random weights
    model = load_classifier(folder, task)
    if model.config.pad_token_id is None:  # else a decoder could not be served in batches
        model.config.pad_token_id = train.pad_token_id
    scale = Scale.of(train.labels, model) if task.kind == "regression" else None
    if scale is not None:
        train = replace(train, labels=scale.reduced(train.labels))
        if folder.has_regression_head:
            scale.take_out_of(model)

    def loss(model: PreTrainedModel, batch: Batch) -> Tensor:
        return label_loss(logits_from_ids(model, batch).float(), batch["labels"], task.kind)

    objective = Objective(loss, lambda logits: measure(task, dev.labels, logits))
    fit = fine_tune(f"teach {task.name}", model, TrainDev(train, dev), objective, training, options)
    if scale is not None:
        scale.put_into(model)
    return model, fit.history
