"""transformers.Trainer, set up once for teacher and students: optimiser, order of rows, best checkpoint, history.

Knows how a classifier is trained on batches; must not know where rows come from or what the loss means.
"""

import csv
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from pipeline.config import Settings
from pipeline.encoding import Batch
from pipeline.errors import PipelineError
from pipeline.files import written_whole
from pipeline.scouting import snapshot_steps
from pipeline.seeding import seed_of
from pipeline.tasks import Floats, Kind

HISTORY_FILE = "history.csv"
HISTORY_COLUMNS = ("epoch", "step", "loss", "dev")

Item = tuple[int, int]
"""Which row, in which epoch: a data set may show a row in another variant every epoch."""
Loss = Callable[[PreTrainedModel, Batch], tuple[Tensor, Tensor]]
"""From a model and a batch to the loss and the logits [rows, outputs]."""


class OptimiserSettings(Settings):
    """How weights are fitted: AdamW with linear warm-up and decay."""

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0)]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    """Share of the steps during which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)]
    seed: int


class RowData(Protocol):
    """Rows to train or measure on."""

    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of tokens of each row."""

    def __len__(self) -> int: ...

    def __getitem__(self, item: Item) -> Any: ...


class EpochOrder(Sampler[list[Item]]):
    """Batches of one epoch: every row once, rows of like length together, in an order that (seed, epoch) decide."""

    POOL = 32
    """Batches that are sorted by length among themselves; larger pads less and shuffles less."""

    def __init__(self, lengths: npt.NDArray[np.int64], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; the trainer calls it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._lengths) // self._batch_size)

    def __iter__(self) -> Iterator[list[Item]]:
        generator = np.random.Generator(np.random.Philox(key=seed_of(self._seed, "order", self._epoch)))
        shuffled = generator.permutation(len(self._lengths))
        pool = self.POOL * self._batch_size
        pools = [shuffled[start : start + pool] for start in range(0, len(shuffled), pool)]
        sorted_rows = np.concatenate([rows[np.argsort(self._lengths[rows], kind="stable")] for rows in pools])
        batches = [sorted_rows[start : start + self._batch_size] for start in range(0, len(shuffled), self._batch_size)]
        for number in generator.permutation(len(batches)):
            yield [(int(row), self._epoch) for row in batches[number]]


class FineTuner(Trainer):
    """The Trainer with a loss and an order of its own."""

    def __init__(self, *, loss: Loss, order: EpochOrder, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._loss, self._order = loss, order

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The given loss; ``num_items_in_batch`` is not needed, the loss is a mean over rows."""
        loss, logits = self._loss(cast(PreTrainedModel, model), inputs)
        return (loss, {"logits": logits}) if return_outputs else loss

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches in the given order."""
        loader = DataLoader(cast(Dataset[Any], self.train_dataset), batch_sampler=self._order, collate_fn=self.data_collator)
        return cast(DataLoader[Any], self.accelerator.prepare(loader))


class DevRows(Sequence[Any]):
    """Rows as the Trainer measures on them: by plain position, in epoch 0."""

    def __init__(self, rows: RowData) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Any:  # type: ignore[override]
        return self._rows[row, 0]


class EpochLines(TrainerCallback):
    """One line an epoch: loss, dev metric, time left."""

    def __init__(self, name: str) -> None:
        self._name, self._began = name, time.monotonic()

    def on_evaluate(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        """Print what is known after an epoch's measurement."""
        loss = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), float("nan"))
        seconds = time.monotonic() - self._began
        left = seconds / state.global_step * (state.max_steps - state.global_step)
        print(
            f"{self._name}: epoch {round(state.epoch)}/{round(args.num_train_epochs)}, loss {loss:.4f}, "
            f"dev {facts['metrics']['eval_dev']:.4f}, {seconds:.0f} s, {left:.0f} s left",
            flush=True,
        )


class Snapshots(TrainerCallback):
    """Saves the model as it is after some of the steps."""

    def __init__(self, steps: int, folders: Sequence[Path]) -> None:
        self._folders = dict(zip(snapshot_steps(steps, len(folders)), folders, strict=True))

    def on_step_end(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        """Save after a step that has a folder."""
        if state.global_step in self._folders:
            facts["model"].save_pretrained(self._folders[state.global_step])


def fine_tune(
    name: str,
    model: PreTrainedModel,
    train: RowData,
    dev: RowData,
    collate: Callable[[list[Any]], Batch],
    loss: Loss,
    measure_dev: Callable[[Floats], float],
    settings: OptimiserSettings,
    snapshots: Sequence[Path] = (),
) -> list[dict[str, float]]:
    """Train ``model`` in place, leave it with the weights of its best epoch, and return its history.

    Args:
        name: for progress lines.
        model: on any device.
        train: rows to learn from.
        dev: rows to choose the best epoch on; their order is that of ``measure_dev``.
        collate: from items of ``train`` or ``dev`` to a batch with "labels".
        loss: what is made small.
        measure_dev: from dev logits [rows, outputs] to the figure whose highest value is best.
        settings: how long and how fast.
        snapshots: folders for the weights on the way, evenly along the steps, the last at the end.

    Returns:
        One entry an epoch: epoch, step, mean training loss, dev metric.

    Raises:
        PipelineError: the training diverged, or has fewer steps than snapshots are wanted.
    """
    order = EpochOrder(train.lengths(), settings.batch_size, settings.seed)
    steps = len(order) * settings.epochs
    if len(snapshots) > steps:
        raise PipelineError(f"{name}: {len(snapshots)} snapshots of {steps} steps cannot differ; keep fewer, or train longer")
    with tempfile.TemporaryDirectory(prefix="fine-tune-") as work:
        trainer = FineTuner(
            loss=loss,
            order=order,
            model=model,
            args=_arguments(settings, Path(work), warmup_steps=round(settings.warmup * steps)),
            train_dataset=train,
            eval_dataset=DevRows(dev),
            data_collator=collate,
            compute_metrics=lambda prediction: {"dev": measure_dev(_finite(name, prediction.predictions))},
            callbacks=[EpochLines(name), Snapshots(steps, snapshots)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        history = _history(trainer.state.log_history)
    model.to("cpu")  # type: ignore[arg-type]
    return history


def _finite(name: str, logits: Floats) -> Floats:
    if not np.isfinite(logits).all():
        raise PipelineError(f"{name}: training diverged, the answers are not numbers any more; lower learning_rate")
    return logits


def label_loss(logits: Tensor, labels: Tensor, kind: Kind) -> Tensor:
    """Cross-entropy, or squared error for regression, mean over the rows that have a label.

    ``logits`` is [rows, outputs]; ``labels`` is [rows] in float32, class indices or values, NaN where there is none.
    """
    known = ~labels.isnan()
    if not known.any():
        return logits.sum() * 0.0
    if kind == "regression":
        return functional.mse_loss(logits[known, 0], labels[known])
    return functional.cross_entropy(logits[known], labels[known].long())


def best_epoch(history: list[dict[str, float]]) -> dict[str, float]:
    """The entry of the epoch whose weights were kept: the first with the highest dev metric."""
    return max(history, key=lambda entry: entry["dev"])


def write_history(folder: Path, history: list[dict[str, float]]) -> None:
    """Write ``history.csv``, one row an epoch."""
    with written_whole(folder / HISTORY_FILE) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, HISTORY_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)


def _arguments(settings: OptimiserSettings, work: Path, warmup_steps: int) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=warmup_steps,
        weight_decay=settings.weight_decay,
        seed=settings.seed % 2**32,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model="dev",
        greater_is_better=True,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_nan_inf_filter=False,
    )
    # One device: the Trainer would wrap the model in DataParallel where it sees several GPUs, and hide its embeddings.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _history(log: list[dict[str, float]]) -> list[dict[str, float]]:
    losses = {round(entry["epoch"]): entry["loss"] for entry in log if "loss" in entry}
    return [
        {
            "epoch": round(entry["epoch"]),
            "step": entry["step"],
            "loss": losses[round(entry["epoch"])],
            "dev": entry["eval_dev"],
        }
        for entry in log
        if "eval_dev" in entry
    ]
