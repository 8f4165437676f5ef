import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
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

from pipeline.encoding import Batch, collate, model_inputs
from pipeline.errors import PipelineError
from pipeline.finetuning import (
    HISTORY_FILE,
    EpochOrder,
    Item,
    OptimiserSettings,
    best_epoch,
    fine_tune,
    label_loss,
    write_history,
)
from pipeline.models import head_settings, load_classifier
from pipeline.tasks import Floats, Kind, Task
from tests.world import MAX_LENGTH, SPECIAL, WORDS

Lengths = npt.NDArray[np.int64]
SETTINGS = OptimiserSettings(epochs=3, batch_size=16, learning_rate=2e-3, warmup=0.1, weight_decay=0.01, seed=5)
some_lengths = st.lists(st.integers(1, 64), min_size=1, max_size=80).map(lambda lengths: np.array(lengths, dtype=np.int64))


def order_of(lengths: Lengths, batch_size: int = 4, seed: int = 0, epoch: int = 0) -> list[list[Item]]:
    order = EpochOrder(lengths, batch_size, seed)
    order.set_epoch(epoch)
    return list(order)


@given(lengths=some_lengths, batch_size=st.integers(1, 9), epoch=st.integers(0, 5))
def test_an_epoch_holds_every_row_once_in_full_batches(lengths: Lengths, batch_size: int, epoch: int) -> None:
    batches = order_of(lengths, batch_size, epoch=epoch)
    assert sorted(row for batch in batches for row, _ in batch) == list(range(len(lengths)))
    assert {number for batch in batches for _, number in batch} == {epoch}
    assert sorted(map(len, batches))[1:] == [batch_size] * (len(batches) - 1)
    assert len(batches) == len(EpochOrder(lengths, batch_size, 0)) == -(-len(lengths) // batch_size)


@given(lengths=some_lengths, seed=st.integers(-(2**63), 2**63), epochs=st.lists(st.integers(0, 5), max_size=4))
def test_an_epochs_order_is_decided_by_seed_and_epoch_whatever_came_before(
    lengths: Lengths, seed: int, epochs: list[int]
) -> None:
    order = EpochOrder(lengths, 4, seed)
    for epoch in epochs:
        order.set_epoch(epoch)
        np.random.default_rng(0).random(3)
        torch.rand(3)
        next(iter(order))
        assert list(order) == list(order) == order_of(lengths, 4, seed, epoch)


def test_every_epoch_and_every_seed_has_an_order_of_its_own() -> None:
    lengths = np.random.default_rng(0).integers(1, 64, 200)
    rows = [
        tuple(row for batch in order_of(lengths, seed=seed, epoch=epoch) for row, _ in batch)
        for seed in range(4)
        for epoch in range(4)
    ]
    assert len(set(rows)) == len(rows)


def realistic_lengths(rows: int) -> Lengths:
    """Lengths of short texts: log-normal about 22 tokens, cut at 64."""
    drawn = np.random.default_rng(0).lognormal(np.log(22), 0.6, rows)
    return np.clip(drawn, 3, 64).astype(np.int64)


@pytest.mark.parametrize("batch_size", [16, 32])
def test_little_of_a_batch_is_padding(batch_size: int) -> None:
    lengths = realistic_lengths(5000)
    batches = [[row for row, _ in batch] for batch in order_of(lengths, batch_size)]
    padded = sum(lengths[rows].max() * len(rows) for rows in batches)
    assert padded / lengths.sum() <= 1.10
    unsorted = sum(lengths[start : start + batch_size].max() * batch_size for start in range(0, 5000, batch_size))
    assert unsorted / lengths.sum() > 1.5, "the distribution is one on which bucketing matters"


def test_batches_do_not_come_by_length_nor_rows_by_position() -> None:
    lengths = realistic_lengths(5000)
    batches = [np.array([row for row, _ in batch]) for batch in order_of(lengths, 16)]
    for of_batch in ([lengths[rows].mean() for rows in batches], [rows.mean() for rows in batches]):
        assert abs(np.corrcoef(of_batch, np.arange(len(batches)))[0, 1]) < 0.2
        assert abs(np.corrcoef(of_batch[1:], of_batch[:-1])[0, 1]) < 0.2


def test_rows_that_share_a_batch_are_others_in_the_next_epoch_even_if_no_two_rows_are_equally_long() -> None:
    lengths = np.random.default_rng(0).permutation(5000) + 1
    together = [{frozenset(row for row, _ in batch) for batch in order_of(lengths, 8, epoch=epoch)} for epoch in (0, 1)]
    assert len(together[0] & together[1]) <= 2


labels = st.lists(st.one_of(st.none(), st.integers(0, 2)), min_size=1, max_size=8)


def some_logits(rows: int, outputs: int) -> Tensor:
    return torch.randn(rows, outputs, generator=torch.Generator().manual_seed(rows)).requires_grad_()


def as_labels(values: list[int | None]) -> Tensor:
    return torch.tensor([float("nan") if value is None else float(value) for value in values])


@pytest.mark.parametrize("kind", ["classification", "regression"])
@given(values=labels)
@settings(deadline=None)
def test_the_loss_is_torchs_over_the_rows_that_have_a_label(kind: Kind, values: list[int | None]) -> None:
    known = [number for number, value in enumerate(values) if value is not None]
    logits = some_logits(len(values), 3 if kind == "classification" else 1)
    loss = label_loss(logits, as_labels(values), kind)
    targets = torch.tensor([-100 if value is None else value for value in values])
    squares = functional.mse_loss(logits[:, 0], targets.float(), reduction="none")
    reference = functional.cross_entropy(logits, targets) if kind == "classification" else squares[known].mean()
    torch.testing.assert_close(loss, reference if known else torch.tensor(0.0))
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad.abs().sum(dim=1) > 0).nonzero().flatten().tolist() == known


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("batch_size", 0), ("learning_rate", 0.0), ("warmup", 1.0), ("warmup", -0.1), ("weight_decay", -0.1)],
)
def test_settings_that_fit_nothing_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValidationError, match=name):
        OptimiserSettings(**(SETTINGS.model_dump() | {name: value}))


class Toy:
    """Rows whose class is told by which words they are made of; notes what was asked for."""

    def __init__(self, rows: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.classes = random.integers(0, 2, rows)
        self.ids = [[2, *random.integers(5, 10, random.integers(2, 12)) + 30 * kind, 3] for kind in self.classes]
        self.asked: list[Item] = []

    def lengths(self) -> Lengths:
        return np.array([len(ids) for ids in self.ids], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, item: Item) -> Any:
        self.asked.append(item)
        return self.ids[item[0]], self.classes[item[0]]


def toy_collate(items: list[Any]) -> Batch:
    labels = torch.tensor([float(kind) for _, kind in items])
    return collate([ids for ids, _ in items], None, 0) | {"labels": labels}


def toy_loss(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    logits = model(**model_inputs(batch)).logits
    return label_loss(logits, batch["labels"], "classification"), logits


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
    given = {
        "train": TRAIN,
        "dev": DEV,
        "collate": toy_collate,
        "loss": toy_loss,
        "measure_dev": accuracy_on(DEV),
        "settings": SETTINGS.model_copy(update=more or {}),
    }
    return fine_tune("toy", model, **(given | changes))


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
        assert order == tuple(row for batch in order_of(train.lengths(), 8, SETTINGS.seed, epoch) for row, _ in batch)
    assert {epoch for _, epoch in dev.asked} == {0}


def test_the_same_seed_gives_the_same_history_and_weights_and_another_seed_others(untrained: PreTrainedModel) -> None:
    results = []
    for seed in (5, 5, 6):
        model = copy.deepcopy(untrained)
        torch.rand(seed)
        history = tune(model, {"epochs": 2, "seed": seed})
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
        (entry,) = tune(copy.deepcopy(untrained), {"epochs": 1, "seed": seed}, train=OneRow())
        losses.append(entry["loss"])
    assert losses[0] == losses[1]
    assert abs(losses[0] - losses[2]) > 1e-3


def test_a_seed_may_be_as_large_as_those_that_names_give(model: PreTrainedModel) -> None:
    assert len(tune(model, {"epochs": 1, "seed": 2**63 - 1})) == 1


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
    tune(model, {"warmup": 0.25, "weight_decay": 0.03, "epochs": 2})
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
    assert tune(model, measure_dev=Scripted(0.9, 0.5, 0.2), snapshots=folders) == history
    assert [weights(load_classifier(folder)) for folder in folders] == [after[step - 1] for step in wanted]
    assert weights(model) == weights(plain) == after[7], "the best epoch's, which the last snapshot is not"
    assert sorted(tmp_path.iterdir()) == sorted(folders)


def test_more_snapshots_than_steps_are_refused_before_training(model: PreTrainedModel, tmp_path: Path) -> None:
    before = weights(model)
    with pytest.raises(PipelineError, match="toy: 25 snapshots of 24 steps cannot differ; keep fewer, or train longer"):
        tune(model, snapshots=[tmp_path / str(number) for number in range(25)])
    assert weights(model) == before


def test_the_loss_that_is_told_is_the_loss_that_was_given(model: PreTrainedModel) -> None:
    def constant(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = model(**model_inputs(batch)).logits
        return logits.sum() * 0.0 + 2.5, logits

    history = tune(model, {"epochs": 2}, loss=constant)
    assert [entry["loss"] for entry in history] == pytest.approx([2.5, 2.5])


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
