import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from pipeline.config.corpus import Kind
from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import Batch, collate, model_inputs
from pipeline.corpus.task import Floats
from pipeline.models.folder import ModelFolder
from pipeline.models.loading import load_classifier
from pipeline.training import callbacks
from pipeline.training.callbacks import NO_CHECKPOINTS, RunOptions, mark_whole
from pipeline.training.order import Lengths, MicroBatch, steps_of
from pipeline.training.trainer import Objective, TrainDev, fine_tune, label_loss
from tests.architectures import of_type
from tests.world import SPECIAL, WORDS, student_settings

SETTINGS = student_settings(
    {"num_train_epochs": 3, "batch_size": 16, "learning_rate": 5e-3, "weight_decay": 0.01, "seed": 5}
).training


@pytest.mark.parametrize("kind", ["classification", "regression"])
@given(values=st.lists(st.sampled_from([float("nan"), 0.0, 1.0, 2.0]), min_size=1, max_size=8))
@settings(deadline=None)
def test_the_loss_of_a_row_is_that_of_torch_or_zero_without_a_label(kind: Kind, values: list[float]) -> None:
    labels, generator = torch.tensor(values), torch.Generator().manual_seed(len(values))
    logits = torch.randn(len(values), 3 if kind == "classification" else 1, generator=generator).requires_grad_()
    loss = label_loss(logits, labels, kind)
    squares = functional.mse_loss(logits[:, 0], labels, reduction="none")
    entropies = (
        functional.cross_entropy(logits, labels.nan_to_num(-100).long(), reduction="none")
        if kind == "classification"
        else squares
    )
    torch.testing.assert_close(loss, torch.where(labels.isnan(), 0.0, entropies))
    loss.sum().backward()
    assert logits.grad is not None
    assert torch.equal((logits.grad.abs().sum(dim=1) > 0), ~labels.isnan())


class Toy:
    """Rows whose words decide their class; notes which rows are read."""

    def __init__(self, rows: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.classes = random.integers(0, 2, rows)
        self.ids = [[2, *random.integers(5, 10, random.integers(2, 12)) + 30 * kind, 3] for kind in self.classes]
        self.read: list[tuple[int, int]] = []
        self.progress: list[float] = []

    def lengths(self) -> Lengths:
        return np.array([len(ids) for ids in self.ids], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, piece: MicroBatch) -> Batch:
        self.read += [(int(row), piece.epoch) for row in piece.rows]
        self.progress.append(piece.progress)
        labels = torch.tensor(self.classes[piece.rows], dtype=torch.float32)
        return collate([self.ids[row] for row in piece.rows], None, 0) | {"labels": labels}


def toy_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    return label_loss(model(**model_inputs(batch)).logits, batch["labels"], "classification")


def accuracy_on(rows: Toy) -> Callable[[Floats], float]:
    return lambda logits: float((logits.argmax(axis=1) == rows.classes).mean())


def one_by_one(model: PreTrainedModel, rows: Toy) -> Floats:
    with torch.inference_mode():
        return np.concatenate([model(input_ids=torch.tensor([ids])).logits.numpy() for ids in rows.ids])


def weights(model: PreTrainedModel) -> bytes:
    return b"".join(tensor.detach().numpy().tobytes() for _, tensor in sorted(model.state_dict().items()))


@pytest.fixture(scope="module")
def untrained() -> PreTrainedModel:
    return of_type("bert", vocab_size=len(SPECIAL + WORDS), num_labels=2).requires_grad_(True)


@pytest.fixture
def model(untrained: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(untrained)


TRAIN, DEV = Toy(120, seed=0), Toy(70, seed=1)


def tune(model: PreTrainedModel, more: Any = None, **changes: Any) -> list[dict[str, float]]:
    rows = TrainDev(changes.get("train", TRAIN), changes.get("dev", DEV))
    objective = Objective(changes.get("loss", toy_loss), changes.get("measure_dev", accuracy_on(DEV)))
    settings, options = SETTINGS.model_copy(update=more or {}), changes.get("options", NO_CHECKPOINTS)
    return fine_tune("toy", model, rows, objective, settings, options).history


def test_a_separable_problem_is_learnt_and_recorded(model: PreTrainedModel, capsys: pytest.CaptureFixture[str]) -> None:
    before = accuracy_on(DEV)(one_by_one(model.eval(), DEV))
    history = tune(model)
    after = accuracy_on(DEV)(one_by_one(model, DEV))
    assert (model.training, model.device.type) == (False, "cpu"), "left as it is used"
    assert before < 0.8
    assert after > 0.9
    assert after == history[-1]["dev"]
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    assert [entry["step"] for entry in history] == [8, 16, 24]
    assert history[-1]["loss"] < history[0]["loss"]
    for line, entry in zip(capsys.readouterr().out.splitlines(), history, strict=True):
        assert line.startswith(f"toy: epoch {entry['epoch']}/3, loss {entry['loss']:.4f}, dev {entry['dev']:.4f}, ")


class Scripted:
    """A dev metric with given values; keeps the logits it is called with."""

    def __init__(self, *figures: float) -> None:
        self.figures, self.seen = list(figures), list[Floats]()

    def __call__(self, logits: Floats) -> float:
        self.seen.append(logits.copy())
        return self.figures[len(self.seen) - 1]


def test_the_last_epoch_is_kept_whatever_dev_says_and_dev_logits_are_in_row_order(model: PreTrainedModel) -> None:
    measure = Scripted(0.1, 0.7, 0.5)
    history = tune(model, measure_dev=measure)
    distances = [np.abs(one_by_one(model, DEV) - seen).max() for seen in measure.seen]
    assert distances[-1] < 1e-4
    assert min(distances[:-1]) > 1e-2
    assert [entry["dev"] for entry in history] == [0.1, 0.7, 0.5]


def test_every_epoch_reads_every_row_once_in_its_own_order(model: PreTrainedModel) -> None:
    train, dev = Toy(37, seed=2), Toy(5, seed=3)
    tune(model, {"batch_size": 8}, train=train, dev=dev, measure_dev=accuracy_on(dev))
    wanted = [
        (int(row), epoch) for epoch in range(3) for rows in steps_of(train.lengths(), 8, SETTINGS.seed, epoch) for row in rows
    ]
    assert train.read == wanted
    assert {epoch for _, epoch in dev.read} == {0}
    assert train.progress == pytest.approx([number / 15 for number in range(15)])


def test_a_seed_also_decides_dropout_and_may_have_64_bits(untrained: PreTrainedModel) -> None:
    """All rows are the same, so that their order decides nothing."""
    train = Toy(32, seed=0)
    train.ids, train.classes = [train.ids[0]] * 32, np.zeros(32, dtype=np.int64)
    losses = []
    for seed in (5, 2**63 - 1):
        (entry,) = tune(copy.deepcopy(untrained), {"num_train_epochs": 1, "seed": seed}, train=train)
        losses.append(entry["loss"])
    assert abs(losses[0] - losses[1]) > 1e-3


def test_the_learning_rate_warms_up_then_decays_to_zero(model: PreTrainedModel) -> None:
    steps: list[tuple[str, list[float], list[float]]] = []

    def note(optimiser: Any, *_: Any) -> None:
        groups = optimiser.param_groups
        steps.append((type(optimiser).__name__, [one["lr"] for one in groups], [one["weight_decay"] for one in groups]))

    handle = register_optimizer_step_pre_hook(note)
    reference = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=SETTINGS.learning_rate)
    schedule = get_linear_schedule_with_warmup(reference, num_warmup_steps=4, num_training_steps=16)
    for _ in range(16):
        reference.step()
        schedule.step()
    tune(model, {"warmup_ratio": 0.25, "weight_decay": 0.03, "num_train_epochs": 2})
    handle.remove()
    assert [rates[0] for _, rates, _ in steps[16:]] == pytest.approx([rates[0] for _, rates, _ in steps[:16]])
    assert {(name, *decays) for name, _, decays in steps[16:]} == {("AdamW", 0.03, 0.0)}


def test_surrogate_checkpoints_are_evenly_spaced_and_do_not_affect_the_training(
    untrained: PreTrainedModel, tmp_path: Path
) -> None:
    model, plain = copy.deepcopy(untrained), copy.deepcopy(untrained)
    after: list[bytes] = []
    handle = register_optimizer_step_post_hook(lambda *_: after.append(weights(plain)))
    history = tune(plain)
    handle.remove()
    wanted = (5, 10, 14, 19, 24)
    folders = [tmp_path / str(number) for number in wanted]
    assert tune(model, options=RunOptions(surrogate_checkpoints=folders)) == history
    assert [weights(load_classifier(ModelFolder(folder))) for folder in folders] == [after[step - 1] for step in wanted]
    assert weights(model) == weights(plain) == after[-1]


def test_more_surrogate_checkpoints_than_steps_are_an_error(model: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="toy: 25 checkpoints of 24 steps cannot differ; keep fewer"):
        tune(model, options=RunOptions(surrogate_checkpoints=[tmp_path / str(number) for number in range(25)]))


def test_the_loss_of_the_history_is_that_of_the_objective(model: PreTrainedModel) -> None:
    def constant(model: PreTrainedModel, batch: Batch) -> Tensor:
        return toy_loss(model, batch) * 0.0 + 2.5

    (entry,) = tune(model, {"num_train_epochs": 1, "gradient_accumulation_steps": 3}, loss=constant)
    assert entry["loss"] == pytest.approx(2.5)


def test_accumulated_gradients_of_micro_batches_of_unequal_size_are_those_of_the_step(untrained: PreTrainedModel) -> None:
    model, whole = (copy.deepcopy(untrained) for _ in range(2))
    for module in (*model.modules(), *whole.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    wanted, found = (
        tune(each, {"num_train_epochs": 1, "batch_size": 7, "gradient_accumulation_steps": turns})
        for each, turns in ((whole, 1), (model, 3))
    )
    assert [entry["loss"] for entry in found] == pytest.approx([entry["loss"] for entry in wanted], rel=1e-3)
    np.testing.assert_allclose(one_by_one(model, DEV), one_by_one(whole, DEV), atol=2e-2)


class Stopped(Exception):
    """The process ends here."""


class Recorded:
    """The toy loss; keeps its values and may end the process."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop
        self.losses: list[float] = []

    def __call__(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        if len(self.losses) == self.stop:
            raise Stopped
        loss = toy_loss(model, batch)
        self.losses.append(float(loss.detach().mean()))
        return loss


@pytest.fixture(scope="module")
def whole(untrained: PreTrainedModel) -> tuple[list[float], list[dict[str, float]], bytes]:
    """Losses, history and weights of an uninterrupted training."""
    model, loss = copy.deepcopy(untrained), Recorded()
    history = tune(model, loss=loss)
    return loss.losses, history, weights(model)


@pytest.mark.parametrize(("stop", "every", "again"), [(11, 3, 9), (8, 4, 8), (2, 3, 0)])
def test_a_stopped_training_resumes_with_the_same_losses_to_the_last_digit(
    untrained: PreTrainedModel,
    whole: tuple[list[float], list[dict[str, float]], bytes],
    tmp_path: Path,
    stop: int,
    every: int,
    again: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stopped before step ``stop`` + 1 of 24, it resumes after step ``again``, the last checkpoint; with dropout."""
    losses, history, trained = whole
    options, first, second = RunOptions(checkpoints=tmp_path, save_steps=every), Recorded(stop), Recorded()
    with pytest.raises(Stopped):
        tune(copy.deepcopy(untrained), loss=first, options=options)
    capsys.readouterr()
    torch.rand(3)
    model = copy.deepcopy(untrained)
    assert tune(model, loss=second, options=options) == history
    assert (first.losses, second.losses) == (losses[:stop], losses[again:])
    assert weights(model) == trained
    assert (f"resumes after step {again} of 24" in capsys.readouterr().out) == (again > 0)


def test_a_finished_training_in_a_moved_folder_loads_its_weights(untrained: PreTrainedModel, tmp_path: Path) -> None:
    """All steps were done when its process ended, so that resuming only loads the last checkpoint."""
    plain, moved = copy.deepcopy(untrained), copy.deepcopy(untrained)
    wanted = tune(plain, measure_dev=Scripted(0.2, 0.9, 0.5), options=RunOptions(checkpoints=tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")
    found = tune(moved, measure_dev=Scripted(), options=RunOptions(checkpoints=tmp_path / "there"))
    assert found == wanted
    assert weights(moved) == weights(plain)


def test_a_training_killed_while_saving_a_checkpoint_resumes_from_the_one_before(
    untrained: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = copy.deepcopy(untrained)
    wanted = tune(plain)
    folder = RunOptions(checkpoints=tmp_path, save_steps=5)

    def end_at_16(states: Path, step: int, *more: Any) -> None:
        if step == 16:
            raise Stopped
        mark_whole(states, step, *more)

    monkeypatch.setattr(callbacks, "mark_whole", end_at_16)
    with pytest.raises(Stopped):
        tune(copy.deepcopy(untrained), options=folder)
    monkeypatch.undo()
    model = copy.deepcopy(untrained)
    assert tune(model, options=folder) == wanted
    assert weights(model) == weights(plain)
