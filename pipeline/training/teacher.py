"""The teacher: fine-tuned on the task, or adopted after a check that it answers it. Knows texts and one model."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from pipeline.config.errors import Faults, PipelineError, refusals
from pipeline.config.params import Settings
from pipeline.corpus.encoding import Batch, Ids, Integers, Types, check_length, collate, encode, length_buckets
from pipeline.corpus.task import Floats, Kind, Split, Task, measure, one_answer
from pipeline.models.architectures import head_settings
from pipeline.models.forward import logits_from_ids, pick_device
from pipeline.models.hashes import check_saving
from pipeline.models.outputs import Scale
from pipeline.models.pretrained import (
    answers_values,
    check_classifier,
    check_classifier_type,
    config_of,
    load_classifier,
    load_tokenizer,
    longest_input,
    saved_labels,
)
from pipeline.models.soundness import GENERIC, check_label_names, check_token_types, check_values, check_vocabulary
from pipeline.store.files import folder_written_whole
from pipeline.training.callbacks import NO_STATES, Conduct
from pipeline.training.order import Piece
from pipeline.training.trainer import OptimiserSettings, best_epoch, fine_tune, label_loss, write_history

ROWS_OF_A_BATCH = 64
"""When an adopted teacher answers dev."""

WAY_OUT = "lower teach.learning_rate where it is above 5.0e-5, else train longer"
"""What to do about a fine-tuned teacher that has learnt nothing."""


class TeacherSettings(Settings):
    """Which model teaches a task."""

    model: str
    """Hub id or folder: a pretrained encoder, or a classifier that is already fine-tuned on the task."""
    fine_tune: bool
    """False adopts the classifier as it is."""
    max_length: Annotated[int, Field(ge=2)]
    """Tokens an example is cut to, special tokens included."""


@dataclass(frozen=True)
class Examples:
    """Encoded examples of one split with their labels."""

    input_ids: list[Ids]
    token_type_ids: list[Types] | None
    labels: Floats
    """[rows]; NaN where there is none."""

    pad_token_id: int

    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of tokens of each row."""
        return np.array([len(ids) for ids in self.input_ids], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.input_ids)

    def batch(self, piece: Piece) -> Batch:
        """The rows of a piece, with their labels."""
        return self.inputs_at(piece.rows) | {"labels": torch.from_numpy(self.labels[piece.rows].astype(np.float32))}

    def inputs_at(self, positions: Integers) -> Batch:
        """What a model reads of some rows."""
        types = None if self.token_type_ids is None else [self.token_type_ids[row] for row in positions]
        return collate([self.input_ids[row] for row in positions], types, self.pad_token_id)


def teach(
    prepared: Path, settings: TeacherSettings, optimiser: OptimiserSettings, out: Path, conduct: Conduct = NO_STATES
) -> float:
    """Make the teacher of a task and write it to ``out``; returns its dev metric.

    Raises:
        PipelineError: the checkpoint does not fit the task, or there is no label to learn from.
    """
    task = Task.read(prepared)
    if faults := teacher_faults(settings.model, settings, task.name, task.kind, task.labels, task.pair):
        raise PipelineError(faults[0]) if len(faults) == 1 else Faults(f"teacher of {task.name}", faults)
    tokenizer = _tokenizer(settings)
    dev = _examples(prepared, "dev", tokenizer, settings.max_length)
    if settings.fine_tune:
        train = _labelled(_examples(prepared, "train", tokenizer, settings.max_length), task)
        model, history = _fine_tuned(task, train, dev, settings, optimiser, conduct)
        dev_value = best_epoch(history)["dev"]
    else:
        model, history = load_classifier(settings.model), []
        dev_value = measure(task, dev.labels, _logits(model, dev))
    if dev_value <= (trivial := measure(task, dev.labels, one_answer(task, dev.labels))):
        way_out = f"; {WAY_OUT}" if settings.fine_tune else ""
        found = f"{task.metric} {dev_value:.4f} on dev, where one answer to all has {trivial:.4f}"
        print(f"note: teacher of {task.name}: {found}; students will learn as little{way_out}", flush=True)
    with folder_written_whole(out) as folder:
        model.config.update(head_settings(task))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        task.save(folder)
        write_history(folder, history)
    return dev_value


def teacher_faults(
    model: str, settings: TeacherSettings, task: str, kind: Kind, labels: tuple[str, ...] | None, pair: bool
) -> list[str]:
    """Every reason why a model cannot teach a task, by its configuration, tokenizer and the names of its weights alone.

    Args:
        model: where it lies; ``settings.model``, or the folder of that in the hub's cache.
        settings: how it becomes the teacher.
        task: what the task is called.
        kind: the task's.
        labels: its label names in their order; none for a regression, None where they are not known yet.
        pair: whether its inputs are pairs of texts.
    """
    try:
        check_classifier_type(model)
    except PipelineError as fault:  # of which everything else would say the same
        return [str(fault)]
    checks: list[Callable[[], object]] = [lambda: check_classifier(model, new_head=settings.fine_tune)]
    if not settings.fine_tune and kind == "regression":
        checks += [lambda: check_values(model)]
    if not settings.fine_tune and labels is not None:
        checks += [lambda: check_answers(model, task, kind, labels)]
    try:
        tokenizer = load_tokenizer(model)
    except PipelineError as fault:
        return [*refusals(*checks), str(fault)]
    checks += [
        lambda: _check_longest(model, settings, tokenizer),
        lambda: check_length(tokenizer, pair, settings.max_length, model),
        lambda: check_vocabulary(model, tokenizer),
        lambda: check_token_types(model, tokenizer, pair),
        lambda: check_saving(model, tokenizer),
    ]
    return refusals(*checks)


def _check_longest(model: str, settings: TeacherSettings, tokenizer: PreTrainedTokenizerBase) -> None:
    longest = longest_input(model, tokenizer)
    if settings.max_length > longest:
        raise PipelineError(f"max_length is {settings.max_length}, but {settings.model} takes at most {longest} tokens")


def _tokenizer(settings: TeacherSettings) -> PreTrainedTokenizerBase:
    """The model's tokenizer, made to cut where the settings say; the saved copy tells every later stage."""
    tokenizer = load_tokenizer(settings.model)
    tokenizer.model_max_length = settings.max_length
    return tokenizer


def _fine_tuned(
    task: Task, train: Examples, dev: Examples, settings: TeacherSettings, optimiser: OptimiserSettings, conduct: Conduct
) -> tuple[PreTrainedModel, list[dict[str, float]]]:
    set_seed(optimiser.seed % 2**32)  # a new head starts from random weights
    model = load_classifier(settings.model, task)
    if model.config.pad_token_id is None:  # so that what is served of a decoder may come in batches
        model.config.pad_token_id = train.pad_token_id
    scale = Scale.of(train.labels, model) if task.kind == "regression" else None
    if scale is not None:
        train = replace(train, labels=scale.reduced(train.labels))
        if answers_values(settings.model):
            scale.take_out_of(model)

    def loss(model: PreTrainedModel, batch: Batch) -> Tensor:
        return label_loss(logits_from_ids(model, batch).float(), batch["labels"], task.kind)

    def dev_metric(logits: Floats) -> float:
        return measure(task, dev.labels, logits)

    fit = fine_tune(f"teach {task.name}", model, train, dev, loss, dev_metric, optimiser, conduct)
    if scale is not None:
        scale.put_into(model)
    return model, fit.history


def check_answers(model: str, task: str, kind: Kind, labels: tuple[str, ...]) -> None:
    """Refuse a classifier whose answers are not a task's; no weight is read.

    Args:
        model: the classifier's hub id or folder.
        task: what the task is called.
        kind: the task's.
        labels: its label names in their order; none for a regression.

    Raises:
        PipelineError: it answers classes where a value is wanted, several labels a row, or others than these.
    """
    config = config_of(model, "classifier")
    if kind == "regression":
        if config.num_labels != 1:
            raise PipelineError(f"{model} answers {config.num_labels} classes, but {task} is a regression")
        return
    if config.problem_type == "multi_label_classification":
        raise PipelineError(
            f"{model} gives each label an answer of its own (problem_type: multi_label_classification), "
            f"but {task} has one label a row; set teacher.fine_tune: true, or name a classifier of one label a row"
        )
    check_label_names(model)
    found = saved_labels(model)
    if found != labels:
        raise PipelineError(
            f"{model} answers {list(found)}, but the labels of {task} are {list(labels)}; {_reconciled(found, labels)}"
        )


def _reconciled(found: tuple[str, ...], labels: tuple[str, ...]) -> str:
    """What to write so that a task's labels are those of its classifier."""
    generic = all(GENERIC.fullmatch(name) for name in found)
    if {*labels} < {*found}:
        return f"a table may lack some of them: list all of the classifier's, in its order: corpus.labels: {_yaml(found)}"
    if len(found) != len(labels):
        unnamed = "if its head has as many, name them in its config.json (id2label, label2id); else " if generic else ""
        return f"{unnamed}a classifier of as many labels is needed, or teacher.fine_tune: true"
    if set(found) == set(labels):
        mapping = ", ".join(f"…: {_yaml(answer)}" for answer in found)
        return (
            f"list them in the checkpoint's order: corpus.labels: {_yaml(found)}; where the table calls them otherwise, "
            f"{{{mapping}}} with its own names in place of …"
        )
    if generic:
        return (
            "write what these stand for into id2label and label2id of the checkpoint's config.json; students and reports name "
            "their answers by it"
        )
    pairs = ", ".join(f"…: {_yaml(answer)}" for answer in found)
    return f"if they mean the same, say which of the table's is which: corpus.labels: {{{pairs}}}"


def _yaml(value: object) -> str:
    """A value as it can be written into params.yaml: JSON is YAML, whatever stands in its texts."""
    return json.dumps(value, ensure_ascii=False)


@torch.inference_mode()
def _logits(model: PreTrainedModel, rows: Examples) -> Floats:
    device = pick_device()
    model.to(device)  # type: ignore[arg-type]
    result = np.empty((len(rows), int(model.config.num_labels or 1)), dtype=np.float32)
    for positions in length_buckets(rows.lengths(), ROWS_OF_A_BATCH):
        batch = {name: value.to(device) for name, value in rows.inputs_at(positions).items()}
        result[positions] = logits_from_ids(model, batch).float().cpu().numpy()
    model.to("cpu")  # type: ignore[arg-type]
    return result


def _examples(prepared: Path, split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Examples:
    columns = pq.read_table(prepared / f"{split}.parquet").to_pydict()
    encoded = encode(tokenizer, columns["text_a"], columns.get("text_b"), max_length)
    labels = np.array([np.nan if label is None else label for label in columns["label"]], dtype=np.float64)
    return Examples(encoded.input_ids, encoded.token_type_ids, labels, int(tokenizer.pad_token_id))


def _labelled(rows: Examples, task: Task) -> Examples:
    """The rows that have a label."""
    known = np.flatnonzero(~np.isnan(rows.labels))
    if not len(known):
        raise PipelineError(
            f"no training example of {task.name} has a label, so no teacher can be fine-tuned; "
            "name a classifier that is already fine-tuned and set teacher.fine_tune: false"
        )
    types = None if rows.token_type_ids is None else [rows.token_type_ids[i] for i in known]
    return Examples([rows.input_ids[i] for i in known], types, rows.labels[known], rows.pad_token_id)
