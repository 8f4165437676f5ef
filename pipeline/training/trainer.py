"""transformers.Trainer, set up once for teacher and students: optimiser, order of rows, best checkpoint, history.

Knows how a model is trained on batches; must not know where rows come from or what the loss means.
"""

import csv
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments, set_seed
from transformers.integrations.integration_utils import get_available_reporting_integrations
from transformers.trainer_callback import PrinterCallback

from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.corpus.encoding import Batch
from pipeline.corpus.seeding import seed_of
from pipeline.corpus.task import Floats, Kind
from pipeline.models.forward import logits_from_ids
from pipeline.store.files import written_whole
from pipeline.training.callbacks import (
    NO_STATES,
    Checkpoints,
    Clock,
    Conduct,
    EpochLines,
    EpochLosses,
    EpochTurns,
    Snapshots,
)
from pipeline.training.checkpoints import newest_whole
from pipeline.training.loading import ByLength, Ready, RowData, as_it_is, piece_loader
from pipeline.training.order import EpochOrder, Sharing

HISTORY_FILE = "history.csv"
HISTORY_COLUMNS = ("epoch", "step", "loss", "dev")

DEV_ROWS = 64
"""Most rows of a batch when dev is measured; no more than are computed at once in training."""

Loss = Callable[[PreTrainedModel, Batch], Tensor]
"""From a model and a batch to the loss of each row, [rows]."""

Answer = Callable[[PreTrainedModel, Batch], Tensor]
"""From a model and a batch to what dev is measured by, [rows, outputs]."""


def class_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The logits of a classifier, [rows, outputs]."""
    return logits_from_ids(model, batch)


class OptimiserSettings(Settings):
    """How weights are fitted: AdamW with a warm-up."""

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    """Rows of a step, whoever computes them."""
    accumulation: Annotated[int, Field(ge=1)]
    """Pieces in which a process takes its rows of a step; more need less memory."""
    learning_rate: Annotated[float, Field(gt=0)]
    schedule: Literal["linear", "cosine", "constant_with_warmup"]
    """What the learning rate does after the warm-up."""
    warmup: Annotated[float, Field(ge=0, lt=1)]
    """Share of the steps during which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)]
    clip: Annotated[float, Field(ge=0)]
    """Greatest length of the gradient of all parameters; 0 leaves it as it is."""
    precision: Literal["float32", "bfloat16", "float16"]
    """Of the products of a step; weights are kept in float32."""
    seed: int


@dataclass(frozen=True)
class Fit:
    """What came of a training."""

    history: list[dict[str, float]]
    """One entry an epoch: epoch, step, mean training loss, dev metric."""
    seconds: float
    """It took, all processes that went on with it together."""


class FineTuner(Trainer):
    """The Trainer with a loss and an order of its own."""

    def __init__(
        self, *, loss: Loss, answer: Answer, order: EpochOrder, losses: EpochLosses, readers: int, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.model_accepts_loss_kwargs = False  # else the Trainer would take the loss for one that is divided already
        self._loss, self._answer, self._order = loss, answer, order
        self._losses, self._readers = losses, readers

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The given loss in training, the answers alone when dev is measured."""
        if not model.training:
            logits = self._answer(cast(PreTrainedModel, model), inputs)
            return logits.new_zeros(()), {"logits": logits}
        loss = self._loss(cast(PreTrainedModel, model), inputs).mean() * inputs["weight"]
        self._losses.add(loss)
        return loss

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Pieces in the given order, each read as a whole."""
        return piece_loader(cast(Ready, self.train_dataset), self._order, self._readers)


def fine_tune(
    name: str,
    model: PreTrainedModel,
    train: RowData,
    dev: RowData,
    loss: Loss,
    measure_dev: Callable[[Floats], float],
    settings: OptimiserSettings,
    conduct: Conduct = NO_STATES,
    answer: Answer = class_logits,
) -> Fit:
    """Train ``model`` in place and leave it with the weights of its best epoch.

    Where torch.distributed is set up, every process calls this and computes its share of each step.

    Args:
        name: for progress lines.
        model: on any device.
        train: rows to learn from.
        dev: rows to choose the best epoch on; their order is that of ``measure_dev``.
        loss: what is made small, row by row.
        measure_dev: from dev answers [rows, outputs] to the figure whose highest value is best.
        settings: how long and how fast.
        conduct: how it is run; where it keeps states, a killed training goes on where it was.
        answer: what dev is measured by; a classifier's logits.

    Raises:
        PipelineError: the training diverged, has fewer steps than snapshots are wanted, or cannot be run as asked.
    """
    sharing = _sharing(settings)
    order = EpochOrder(train.lengths(), settings.batch_size, settings.epochs, settings.seed, sharing)
    steps = order.steps * settings.epochs
    _check(name, settings, conduct, steps)
    losses, clock = EpochLosses(sharing, order.steps), Clock()
    by_length = ByLength(dev)
    with _folder(conduct) as folder:
        trainer = FineTuner(
            loss=loss,
            answer=answer,
            order=order,
            losses=losses,
            readers=conduct.readers,
            model=model,
            args=_arguments(settings, conduct, folder, warmup_steps=round(settings.warmup * steps)),
            train_dataset=Ready(train),
            eval_dataset=by_length,
            data_collator=as_it_is,
            compute_metrics=lambda found: {"dev": measure_dev(by_length.in_their_order(_finite(name, found.predictions)))},
            callbacks=[
                EpochTurns(order, losses),
                EpochLines(name, losses),
                Snapshots(steps, conduct.snapshots),
                Checkpoints(conduct, order, losses, clock),
            ],
        )
        trainer.remove_callback(PrinterCallback)
        if sharing.process:  # else all processes would drop the same neurons
            set_seed(seed_of(settings.seed, "process", sharing.process) % 2**32)
        trainer.train(resume_from_checkpoint=_gone_on_from(conduct, sharing, losses, clock))
        history = _history(trainer.state.log_history, losses.closed)
    model.to("cpu")  # type: ignore[arg-type]
    return Fit(history, clock.seconds())


def label_loss(logits: Tensor, labels: Tensor, kind: Kind) -> Tensor:
    """Cross-entropy, or squared error for regression, of each row, [rows]; 0 for a row without a label.

    ``logits`` is [rows, outputs]; ``labels`` is [rows] in float32, class indices or values, NaN where there is none.
    """
    known = ~labels.isnan()
    filled = labels.nan_to_num()
    if kind == "regression":
        losses = (logits[:, 0] - filled).square()
    else:
        losses = functional.cross_entropy(logits, filled.long(), reduction="none")
    return torch.where(known, losses, 0.0)


def best_epoch(history: list[dict[str, float]]) -> dict[str, float]:
    """The entry of the epoch whose weights were kept: the first with the highest dev metric."""
    return max(history, key=lambda entry: entry["dev"])


def write_history(folder: Path, history: list[dict[str, float]]) -> None:
    """Write ``history.csv``, one row an epoch."""
    with written_whole(folder / HISTORY_FILE) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, HISTORY_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)


def _sharing(settings: OptimiserSettings) -> Sharing:
    if not dist.is_initialized():
        return Sharing(turns=settings.accumulation)
    return Sharing(dist.get_world_size(), dist.get_rank(), settings.accumulation)


def _check(name: str, settings: OptimiserSettings, conduct: Conduct, steps: int) -> None:
    """Refuse what the Trainer would refuse later, or not at all."""
    snapshots = len(conduct.snapshots)
    if snapshots > steps:
        raise PipelineError(f"{name}: {snapshots} snapshots of {steps} steps cannot differ; keep fewer, or train longer")
    if settings.precision == "float16" and not torch.cuda.is_available():
        raise PipelineError(f"{name}: float16 needs a GPU; use precision: bfloat16 or float32 on a processor")
    check_services(conduct.log_to)


def check_services(log_to: Sequence[str]) -> None:
    """Refuse services that a training cannot tell of its progress."""
    known = get_available_reporting_integrations()
    if unknown := [service for service in log_to if service not in known]:
        raise PipelineError(
            f"runtime.log_to names {', '.join(unknown)}, which is not installed; installed are {', '.join(known) or 'none'}"
        )


@contextmanager
def _folder(conduct: Conduct) -> Iterator[Path]:
    """Where the Trainer keeps its states: for longer, or until the best one was loaded."""
    if conduct.checkpoints is not None:
        conduct.checkpoints.mkdir(parents=True, exist_ok=True)
        yield conduct.checkpoints
    else:
        with tempfile.TemporaryDirectory(prefix="fine-tune-") as work:
            yield Path(work)


def _gone_on_from(conduct: Conduct, sharing: Sharing, losses: EpochLosses, clock: Clock) -> str | None:
    """The state from which all processes go on, if there is one; the losses become what they were then."""
    found = [newest_whole(conduct.checkpoints) if conduct.checkpoints and sharing.process == 0 else None]
    if sharing.processes > 1:
        dist.broadcast_object_list(found, src=0)
    if found[0] is None:
        return None
    checkpoint, beside = found[0]
    if not checkpoint.is_dir():
        raise PipelineError(f"a trainer does not see {checkpoint}; trainers need runtime.store on a disk that they share")
    losses.restore(beside["closed"], beside["sum"])
    clock.restore(beside["seconds"])
    return str(checkpoint)


def _finite(name: str, logits: Floats) -> Floats:
    if not np.isfinite(logits).all():
        raise PipelineError(f"{name}: training diverged, the answers are not numbers any more; lower learning_rate")
    return logits


def _arguments(settings: OptimiserSettings, conduct: Conduct, folder: Path, warmup_steps: int) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=min(DEV_ROWS, -(-settings.batch_size // settings.accumulation)),
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        use_cpu=not torch.cuda.is_available(),
        bf16=settings.precision == "bfloat16",
        fp16=settings.precision == "float16",
        seed=settings.seed % 2**32,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=1 if conduct.checkpoints is None else None,  # the best is kept as well; else Checkpoints deletes
        save_only_model=conduct.checkpoints is None,
        load_best_model_at_end=True,
        metric_for_best_model="dev",
        greater_is_better=True,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=list(conduct.log_to) or "none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        logging_nan_inf_filter=False,
    )
    # One device: the Trainer would wrap the model in DataParallel where it sees several GPUs, and hide its embeddings.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _history(log: list[dict[str, float]], losses: list[float]) -> list[dict[str, float]]:
    measured = [entry for entry in log if "eval_dev" in entry]
    return [
        {"epoch": round(entry["epoch"]), "step": entry["step"], "loss": loss, "dev": entry["eval_dev"]}
        for entry, loss in zip(measured, losses, strict=True)
    ]
