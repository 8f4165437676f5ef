"""Set-up of transformers.Trainer for the teacher, the masked language model and students."""

import csv
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments, set_seed
from transformers.integrations.integration_utils import get_available_reporting_integrations
from transformers.trainer_callback import PrinterCallback

from pipeline.config.corpus import Kind
from pipeline.config.errors import PipelineError
from pipeline.config.settings import TrainingSettings
from pipeline.corpus.encoding import Batch
from pipeline.corpus.seeding import seed_of
from pipeline.corpus.task import Floats
from pipeline.models.forward import logits_from_ids
from pipeline.store.files import written_whole
from pipeline.training.callbacks import NO_CHECKPOINTS, Checkpoints, Progress, RunOptions, newest_whole
from pipeline.training.order import DevDataset, EpochOrder, RowData, StepSharding, TrainDataset, as_it_is, train_loader

HISTORY_FILE = "history.csv"

DEV_ROWS = 64
"""Greatest number of rows per batch on dev; never more than a micro-batch of training."""

PASSED_ON = {
    "num_train_epochs", "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "weight_decay", "max_grad_norm"
}  # fmt: skip
"""Settings that are passed on to TrainingArguments."""

IGNORED = -100
"""The label of a row or token that has none."""

Loss = Callable[[PreTrainedModel, Batch], Tensor]
"""From a model and a batch to the loss of each row, [rows]."""


@dataclass(frozen=True)
class TrainDev:
    """The rows of a training."""

    train: RowData
    dev: RowData


@dataclass(frozen=True)
class Objective:
    """What a training minimises, and the dev metric that is recorded after each epoch."""

    loss: Loss
    dev_metric: Callable[[Floats], float]
    """From dev outputs [rows, outputs], in the order of the rows, to the metric; higher is better."""
    outputs: Callable[[PreTrainedModel, Batch], Tensor] = logits_from_ids


@dataclass(frozen=True)
class Fit:
    """Result of a training."""

    history: list[dict[str, float]]
    """One entry per epoch: epoch, step, mean training loss, dev metric."""
    seconds: float
    """Duration, including the runs that it resumed."""


class FineTuner(Trainer):
    """A Trainer with a given objective and order of rows."""

    def __init__(self, objective: Objective, order: EpochOrder, progress: Progress, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.model_accepts_loss_kwargs = False  # else the Trainer assumes that the loss is divided already
        self._objective, self._order, self._progress = objective, order, progress

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective's loss in training, only its outputs in evaluation."""
        if not model.training:
            outputs = self._objective.outputs(cast(PreTrainedModel, model), inputs)
            return outputs.new_zeros(()), {"logits": outputs}
        loss = self._objective.loss(cast(PreTrainedModel, model), inputs).mean() * inputs["weight"]
        self._progress.add(loss)
        return loss

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Micro-batches in the given order."""
        return train_loader(cast(TrainDataset, self.train_dataset), self._order, self.args.dataloader_num_workers)


def fine_tune(
    name: str,
    model: PreTrainedModel,
    rows: TrainDev,
    objective: Objective,
    settings: TrainingSettings,
    options: RunOptions = NO_CHECKPOINTS,
) -> Fit:
    """Train ``model`` in place and leave it with the last epoch's weights; resumes from the latest checkpoint if there is one.

    No epoch is chosen on dev, where similar epochs differ by chance.

    If torch.distributed is initialised, every rank calls this and computes its share of each step.
    """
    ranks = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    sharding = StepSharding(*ranks, settings.gradient_accumulation_steps)
    order = EpochOrder(rows.train.lengths(), settings.batch_size, settings.num_train_epochs, settings.seed, sharding)
    steps = order.steps * settings.num_train_epochs
    if (saved := len(options.surrogate_checkpoints)) > steps:
        raise PipelineError(f"{name}: {saved} checkpoints of {steps} steps cannot differ; keep fewer, or train longer")
    if settings.precision == "float16" and not torch.cuda.is_available():
        raise PipelineError(f"{name}: float16 needs a GPU; use precision: bfloat16 or float32 on a processor")
    check_reporting(options.report_to)
    progress, dev = Progress(name, order), DevDataset(rows.dev)

    def dev_metric(found: Any) -> dict[str, float]:
        if not np.isfinite(found.predictions).all():
            raise PipelineError(f"{name}: training diverged, the model's outputs are not finite; lower learning_rate")
        return {"dev": objective.dev_metric(dev.in_row_order(found.predictions))}

    with ExitStack() as temporary:
        if (folder := options.checkpoints) is None:
            folder = Path(temporary.enter_context(tempfile.TemporaryDirectory(prefix="fine-tune-")))
        folder.mkdir(parents=True, exist_ok=True)
        trainer = FineTuner(
            objective,
            order,
            progress,
            model=model,
            args=_arguments(settings, options, folder, warmup_steps=round(settings.warmup_ratio * steps)),
            train_dataset=TrainDataset(rows.train),
            eval_dataset=dev,
            data_collator=as_it_is,
            compute_metrics=dev_metric,
            callbacks=[progress, Checkpoints(options, order, progress)],
        )
        trainer.remove_callback(PrinterCallback)
        if sharding.rank:  # else all ranks would drop the same neurons
            set_seed(seed_of(settings.seed, "process", sharding.rank) % 2**32)
        trainer.train(resume_from_checkpoint=_resumed_from(options, sharding, progress))
    model.to("cpu")  # type: ignore[arg-type]
    evaluated = [entry for entry in trainer.state.log_history if "eval_dev" in entry]
    history = [
        {"epoch": round(entry["epoch"]), "step": entry["step"], "loss": loss, "dev": entry["eval_dev"]}
        for entry, loss in zip(evaluated, progress.losses, strict=True)
    ]
    return Fit(history, progress.seconds())


def label_loss(logits: Tensor, labels: Tensor, kind: Kind) -> Tensor:
    """Cross-entropy, or squared error for regression, of each row, [rows]; 0 for a row without a label.

    ``logits`` is [rows, outputs]; ``labels`` is [rows] in float32, class indices or values, NaN if unknown.
    """
    if kind == "regression":
        return torch.where(labels.isnan(), 0.0, (logits[:, 0] - labels.nan_to_num()).square())
    return functional.cross_entropy(logits, labels.nan_to_num(IGNORED).long(), reduction="none", ignore_index=IGNORED)


def write_history(folder: Path, history: list[dict[str, float]]) -> None:
    """Write ``history.csv``, one row per epoch."""
    with written_whole(folder / HISTORY_FILE) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ("epoch", "step", "loss", "dev"), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)


def check_reporting(report_to: Sequence[str]) -> None:
    """Raise for integrations that are not installed."""
    known = get_available_reporting_integrations()
    if unknown := [service for service in report_to if service not in known]:
        raise PipelineError(
            f"runtime.report_to names {', '.join(unknown)}, which is not installed; installed are {', '.join(known) or 'none'}"
        )


def _resumed_from(options: RunOptions, sharding: StepSharding, progress: Progress) -> str | None:
    """The checkpoint from which all ranks resume, if there is one; restores ``progress``."""
    found = [newest_whole(options.checkpoints) if options.checkpoints and sharding.rank == 0 else None]
    if sharding.world_size > 1:
        dist.broadcast_object_list(found, src=0)
    if found[0] is None:
        return None
    checkpoint, beside = found[0]
    if not checkpoint.is_dir():
        raise PipelineError(f"a trainer does not see {checkpoint}; trainers need runtime.store on a shared disk")
    progress.restore(beside)
    return str(checkpoint)


def _arguments(settings: TrainingSettings, options: RunOptions, folder: Path, warmup_steps: int) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        **settings.model_dump(include=PASSED_ON),
        dataloader_num_workers=options.dataloader_num_workers,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=min(DEV_ROWS, -(-settings.batch_size // settings.gradient_accumulation_steps)),
        warmup_steps=warmup_steps,
        use_cpu=not torch.cuda.is_available(),
        bf16=settings.precision == "bfloat16",
        fp16=settings.precision == "float16",
        seed=settings.seed % 2**32,
        eval_strategy="epoch",
        save_strategy="no" if options.checkpoints is None else "epoch",  # Checkpoints deletes all but the latest
        logging_strategy="epoch",
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=list(options.report_to) or "none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        logging_nan_inf_filter=False,
    )
    # One device: the Trainer would wrap the model in DataParallel if it sees several GPUs, and hide its embeddings.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
