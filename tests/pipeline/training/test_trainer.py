import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    get_linear_schedule_with_warmup,
    set_seed,
)

from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import Batch, collate, model_inputs
from pipeline.corpus.task import Floats, Kind, Task
from pipeline.models.architectures import head_settings
from pipeline.models.loading import load_classifier
from pipeline.training import callbacks
from pipeline.training.callbacks import NO_CHECKPOINTS, RunOptions
from pipeline.training.checkpoints import mark_whole, newest_whole
from pipeline.training.order import Lengths, MicroBatch, steps_of
from pipeline.training.trainer import (
    HISTORY_FILE,
    Objective,
    OptimiserSettings,
    TrainDev,
    best_epoch,
    fine_tune,
    label_loss,
    write_history,
)
from tests import world
from tests.world import MAX_LENGTH, SPECIAL, WORDS

SETTINGS = OptimiserSettings.model_validate(
    world.OPTIMISER | {"num_train_epochs": 3, "batch_size": 16, "learning_rate": 2e-3, "weight_decay": 0.01, "seed": 5}
)


labels = st.lists(st.one_of(st.none(), st.integers(0, 2)), min_size=1, max_size=8)


def some_logits(rows: int, outputs: int) -> Tensor:
    return torch.randn(rows, outputs, generator=torch.Generator().manual_seed(rows)).requires_grad_()


def as_labels(values: list[int | None]) -> Tensor:
    return torch.tensor([float("nan") if value is None else float(value) for value in values])


@pytest.mark.parametrize("kind", ["classification", "regression"])
@given(values=labels)
@settings(deadline=None)
def test_the_loss_of_a_row_is_torchs_or_nothing_where_there_is_no_label(kind: Kind, values: list[int | None]) -> None:
    known = [number for number, value in enumerate(values) if value is not None]
    logits = some_logits(len(values), 3 if kind == "classification" else 1)
    loss = label_loss(logits, as_labels(values), kind)
    targets = torch.tensor([-100 if value is None else value for value in values])
    squares = functional.mse_loss(logits[:, 0], targets.float(), reduction="none")
    each = functional.cross_entropy(logits, targets, reduction="none") if kind == "classification" else squares
    torch.testing.assert_close(loss, torch.where(as_labels(values).isnan(), 0.0, each))
    loss.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad.abs().sum(dim=1) > 0).nonzero().flatten().tolist() == known


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_train_epochs", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("warmup_ratio", 1.0),
        ("warmup_ratio", -0.1),
        ("weight_decay", -0.1),
        ("gradient_accumulation_steps", 0),
        ("max_grad_norm", -1.0),
        ("lr_scheduler_type", "wild"),
        ("precision", "int8"),
    ],
)  # fmt: skip
def test_settings_that_fit_nothing_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        OptimiserSettings(**(SETTINGS.model_dump() | {name: value}))


class Toy:
    """Rows whose class is told by which words they are made of; notes what was asked for."""

    def __init__(self, rows: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.classes = random.integers(0, 2, rows)
        self.ids = [[2, *random.integers(5, 10, random.integers(2, 12)) + 30 * kind, 3] for kind in self.classes]
        self.asked: list[tuple[int, int]] = []
        self.progress: list[float] = []

    def lengths(self) -> Lengths:
        return np.array([len(ids) for ids in self.ids], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, piece: MicroBatch) -> Batch:
        self.asked += [(int(row), piece.epoch) for row in piece.rows]
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


@pytest.fixture(scope="module")
def untrained(task: Task) -> PreTrainedModel:
    set_seed(3)
    config = BertConfig(
        vocab_size=len(SPECIAL + WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.1,
        **head_settings(task),
    )
    return BertForSequenceClassification(config)


@pytest.fixture
def model(untrained: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(untrained)


TRAIN, DEV = Toy(120, seed=0), Toy(70, seed=1)


def tune(model: PreTrainedModel, more: Any = None, **changes: Any) -> list[dict[str, float]]:
    rows = TrainDev(changes.get("train", TRAIN), changes.get("dev", DEV))
    metric, memory = changes.get("measure_dev", accuracy_on(DEV)), changes.get("memory")
    objective = Objective(changes.get("loss", toy_loss), metric, memory=memory)
    settings, options = SETTINGS.model_copy(update=more or {}), changes.get("options", NO_CHECKPOINTS)
    return fine_tune("toy", model, rows, objective, settings, options).history


def test_a_separable_problem_is_learnt_and_its_history_says_so(
    model: PreTrainedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    before = accuracy_on(DEV)(one_by_one(model.eval(), DEV))
    history = tune(model)
    after = accuracy_on(DEV)(one_by_one(model, DEV))
    assert (model.training, model.device.type) == (False, "cpu"), "left as it is used"
    assert before < 0.7
    assert after > 0.9
    assert after == best_epoch(history)["dev"]
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    assert [entry["step"] for entry in history] == [8, 16, 24]
    assert history[-1]["loss"] < history[0]["loss"]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    for line, entry in zip(printed, history, strict=True):
        wanted = f"toy: epoch {entry['epoch']}/3, loss {entry['loss']:.4f}, dev {entry['dev']:.4f}, "
        assert line.startswith(wanted)
    assert printed[-1].endswith(" 0 s left")


class Scripted:
    """Says of the dev logits what the script says, and keeps them."""

    def __init__(self, *figures: float) -> None:
        self.figures, self.seen = list(figures), list[Floats]()

    def __call__(self, logits: Floats) -> float:
        self.seen.append(logits.copy())
        return self.figures[len(self.seen) - 1]


@pytest.mark.parametrize(
    ("figures", "best"),
    [((0.2, 0.9, 0.5), 1), ((0.9, 0.2, 0.5), 0), ((0.1, 0.7, 0.7), 1), ((-3.0, -9.0, -1.0), 2)],
)
def test_the_model_is_left_with_the_weights_of_its_first_best_epoch_and_dev_logits_come_row_by_row(
    model: PreTrainedModel, figures: tuple[float, ...], best: int
) -> None:
    measure = Scripted(*figures)
    history = tune(model, measure_dev=measure)
    distances = [np.abs(one_by_one(model, DEV) - seen).max() for seen in measure.seen]
    assert distances[best] < 1e-4
    assert min(distance for epoch, distance in enumerate(distances) if epoch != best) > 1e-2
    assert [entry["dev"] for entry in history] == list(figures)
    assert best_epoch(history)["epoch"] == best + 1


def test_every_epoch_asks_for_every_row_once_under_its_own_number(model: PreTrainedModel) -> None:
    train, dev = Toy(37, seed=2), Toy(5, seed=3)
    tune(model, {"batch_size": 8}, train=train, dev=dev, measure_dev=accuracy_on(dev))
    assert sorted(train.asked) == sorted((row, epoch) for row in range(37) for epoch in range(3))
    assert [epoch for _, epoch in train.asked] == sorted(epoch for _, epoch in train.asked)
    orders = [tuple(row for row, number in train.asked if number == epoch) for epoch in range(3)]
    for epoch, order in enumerate(orders):
        assert order == tuple(int(row) for rows in steps_of(train.lengths(), 8, SETTINGS.seed, epoch) for row in rows)
    assert {epoch for _, epoch in dev.asked} == {0}
    assert train.progress == pytest.approx([number / 15 for number in range(15)])


def test_the_same_seed_gives_the_same_history_and_weights_and_another_seed_others(untrained: PreTrainedModel) -> None:
    results = []
    for seed in (5, 5, 6):
        model = copy.deepcopy(untrained)
        torch.rand(seed)
        history = tune(model, {"num_train_epochs": 2, "seed": seed})
        results.append((history, one_by_one(model, DEV).tobytes()))
    assert results[0] == results[1]
    assert results[0][0] != results[2][0]
    assert results[0][1] != results[2][1]


class OneRow(Toy):
    """The same row many times, so that the order of rows decides nothing."""

    def __init__(self) -> None:
        super().__init__(32, seed=0)
        self.ids, self.classes = [self.ids[0]] * 32, np.zeros(32, dtype=np.int64)


def test_the_seed_decides_chance_inside_the_model_too_and_what_ran_before_does_not(untrained: PreTrainedModel) -> None:
    losses = []
    for seed in (5, 5, 6):
        torch.rand(seed)
        (entry,) = tune(copy.deepcopy(untrained), {"num_train_epochs": 1, "seed": seed}, train=OneRow())
        losses.append(entry["loss"])
    assert losses[0] == losses[1]
    assert abs(losses[0] - losses[2]) > 1e-3


def test_a_seed_may_be_as_large_as_those_that_names_give(model: PreTrainedModel) -> None:
    assert len(tune(model, {"num_train_epochs": 1, "seed": 2**63 - 1})) == 1


@pytest.fixture
def steps() -> Iterator[list[dict[str, Any]]]:
    """What every step of an optimiser is taken with."""
    seen: list[dict[str, Any]] = []

    def note(optimiser: Any, *_: Any) -> None:
        groups = [{name: group[name] for name in ("lr", "weight_decay")} for group in optimiser.param_groups]
        seen.append({"name": type(optimiser).__name__, "groups": groups})

    handle = register_optimizer_step_pre_hook(note)
    yield seen
    handle.remove()


def test_the_learning_rate_rises_for_its_share_of_the_steps_then_falls_to_zero(
    model: PreTrainedModel, steps: list[dict[str, Any]]
) -> None:
    reference = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=SETTINGS.learning_rate)
    schedule = get_linear_schedule_with_warmup(reference, num_warmup_steps=4, num_training_steps=16)
    for _ in range(16):
        reference.step()
        schedule.step()
    wanted = [step["groups"][0]["lr"] for step in steps]
    steps.clear()
    tune(model, {"warmup_ratio": 0.25, "weight_decay": 0.03, "num_train_epochs": 2})
    assert [step["groups"][0]["lr"] for step in steps] == pytest.approx(wanted)
    assert {step["name"] for step in steps} == {"AdamW"}
    assert [group["weight_decay"] for group in steps[0]["groups"]] == [0.03, 0.0]


def weights(model: PreTrainedModel) -> bytes:
    return b"".join(tensor.detach().numpy().tobytes() for _, tensor in sorted(model.state_dict().items()))


@pytest.mark.parametrize("wanted", [[24], [8, 16, 24], [5, 10, 14, 19, 24]])
def test_snapshots_are_the_weights_after_evenly_spaced_steps_and_change_nothing(
    untrained: PreTrainedModel, tmp_path: Path, wanted: list[int]
) -> None:
    model, plain = copy.deepcopy(untrained), copy.deepcopy(untrained)
    after: list[bytes] = []
    handle = register_optimizer_step_post_hook(lambda *_: after.append(weights(plain)))
    history = tune(plain, measure_dev=Scripted(0.9, 0.5, 0.2))
    handle.remove()
    folders = [tmp_path / str(number) for number in wanted]
    assert tune(model, measure_dev=Scripted(0.9, 0.5, 0.2), options=RunOptions(snapshots=folders)) == history
    assert [weights(load_classifier(folder)) for folder in folders] == [after[step - 1] for step in wanted]
    assert weights(model) == weights(plain) == after[7], "the best epoch's, which the last snapshot is not"
    assert sorted(tmp_path.iterdir()) == sorted(folders)


def test_more_snapshots_than_steps_are_refused_before_training(model: PreTrainedModel, tmp_path: Path) -> None:
    before = weights(model)
    with pytest.raises(PipelineError, match="toy: 25 snapshots of 24 steps cannot differ; keep fewer, or train longer"):
        tune(model, options=RunOptions(snapshots=[tmp_path / str(number) for number in range(25)]))
    assert weights(model) == before


def test_the_loss_that_is_told_is_the_loss_that_was_given(model: PreTrainedModel) -> None:
    def constant(model: PreTrainedModel, batch: Batch) -> Tensor:
        return model(**model_inputs(batch)).logits.sum(dim=1) * 0.0 + 2.5

    history = tune(model, {"num_train_epochs": 2}, loss=constant)
    assert [entry["loss"] for entry in history] == pytest.approx([2.5, 2.5])


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_pieces_of_a_step_change_nothing_but_last_digits(untrained: PreTrainedModel, turns: int) -> None:
    """Without dropout a step in pieces of unequal size is the same step."""
    model, whole = (copy.deepcopy(untrained) for _ in range(2))
    for each in (model, whole):
        for module in each.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    wanted, found = tune(whole, {"batch_size": 7}), tune(model, {"batch_size": 7, "gradient_accumulation_steps": turns})
    assert [entry["loss"] for entry in found] == pytest.approx([entry["loss"] for entry in wanted], rel=1e-3)
    np.testing.assert_allclose(one_by_one(model, DEV), one_by_one(whole, DEV), atol=2e-2)


class Stopped(Exception):
    """The process ends here."""


class Remembering:
    """A loss whose value depends on how often it was asked, which it must know again when a training goes on."""

    def __init__(self, stop: int | None = None) -> None:
        self.asked, self.stop = 0.0, stop
        self.losses: list[float] = []

    def __call__(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        if self.stop is not None and len(self.losses) == self.stop:
            raise Stopped
        self.asked += 1
        loss = toy_loss(model, batch) * (1 + self.asked / 100)
        self.losses.append(float(loss.detach().mean()))
        return loss

    def state(self) -> dict[str, float]:
        return {"asked": self.asked}

    def restore(self, state: dict[str, float]) -> None:
        self.asked = state["asked"]


@pytest.mark.parametrize(("stop", "every", "again"), [(5, 2, 4), (8, 3, 8), (11, 3, 9), (17, 0, 16), (23, 5, 20), (2, 3, 0)])
def test_a_training_that_was_stopped_goes_on_with_the_same_losses_to_the_last_digit(
    untrained: PreTrainedModel, tmp_path: Path, stop: int, every: int, again: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped before step ``stop`` + 1 of 24, it resumes after step ``again``, the last that was kept; dropout and all."""
    whole, plain = Remembering(), copy.deepcopy(untrained)
    wanted = tune(plain, loss=whole, memory=whole)
    options = RunOptions(checkpoints=tmp_path / "states", save_steps=every)
    first = Remembering(stop)
    with pytest.raises(Stopped):
        tune(copy.deepcopy(untrained), loss=first, memory=first, options=options)
    assert first.losses == whole.losses[:stop]
    capsys.readouterr()
    torch.rand(3)
    second, model = Remembering(), copy.deepcopy(untrained)
    found = tune(model, loss=second, memory=second, options=options)
    assert second.losses == whole.losses[again:]
    assert found == wanted
    assert weights(model) == weights(plain)
    said = f"toy: resumes after step {again} of 24\n" if again else ""
    assert capsys.readouterr().out.startswith(said + f"toy: epoch {again // 8 + 1}/3")


def test_a_finished_training_whose_folder_was_moved_is_left_with_its_best_weights(
    untrained: PreTrainedModel, tmp_path: Path
) -> None:
    """All steps were done when its process ended, so that going on means no more than to load the best."""
    figures = (0.2, 0.9, 0.5)
    plain, moved = copy.deepcopy(untrained), copy.deepcopy(untrained)
    wanted = tune(plain, measure_dev=Scripted(*figures), options=RunOptions(checkpoints=tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")
    found = tune(moved, measure_dev=Scripted(), options=RunOptions(checkpoints=tmp_path / "there"))
    assert found == wanted
    assert weights(moved) == weights(plain)


def test_a_training_that_ends_while_its_new_best_state_is_written_goes_on_from_an_older_one(
    untrained: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = copy.deepcopy(untrained)
    wanted = tune(plain, measure_dev=Scripted(0.2, 0.5, 0.9))
    folder = RunOptions(checkpoints=tmp_path, save_steps=3)

    def end_at_16(states: Path, step: int, *more: Any) -> None:
        if step == 16:
            raise Stopped
        mark_whole(states, step, *more)

    monkeypatch.setattr(callbacks, "mark_whole", end_at_16)
    with pytest.raises(Stopped):
        tune(copy.deepcopy(untrained), measure_dev=Scripted(0.2, 0.5), options=folder)
    monkeypatch.undo()
    whole = newest_whole(tmp_path)
    assert whole is not None
    assert whole[0].name == "checkpoint-15"
    model = copy.deepcopy(untrained)
    assert tune(model, measure_dev=Scripted(0.5, 0.9), options=folder) == wanted
    assert weights(model) == weights(plain)


def test_a_history_is_one_row_an_epoch_that_any_program_reads(tmp_path: Path) -> None:
    history = [
        {"epoch": 1, "step": 8, "loss": 0.5, "dev": 0.1 + 0.2},
        {"epoch": 2, "step": 16, "loss": 1e-7, "dev": -1.0},
    ]
    write_history(tmp_path, history)
    assert (tmp_path / HISTORY_FILE).read_bytes() == (b"epoch,step,loss,dev\n1,8,0.5,0.30000000000000004\n2,16,1e-07,-1.0\n")
    assert [path.name for path in tmp_path.iterdir()] == [HISTORY_FILE]


def test_a_history_with_what_is_no_column_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="accuracy"):
        write_history(tmp_path, [{"epoch": 1, "accuracy": 0.5}])
    assert list(tmp_path.iterdir()) == []
