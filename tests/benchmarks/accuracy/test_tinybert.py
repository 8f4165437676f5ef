from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import mse_loss
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from benchmarks.accuracy.tinybert import Copies, LayersLoss, held_by, train_layers
from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import Batch, model_inputs
from pipeline.distill.dataset import Examples
from pipeline.distill.student import make_student
from pipeline.distill.training import Sources
from pipeline.models.folder import load_tokenizer
from pipeline.models.forward import freeze
from pipeline.models.loading import load_classifier
from pipeline.shards.reader import Shards
from pipeline.training.order import MicroBatch
from tests.world import student_settings


@pytest.fixture
def batch(scores: Path) -> Batch:
    """Rows of different lengths."""
    return Examples(Shards(scores), "train").batch(MicroBatch(np.arange(12), 0, 0.0, 1.0))


def of_row(batch: Batch, row: int) -> Batch:
    """One row without its padding."""
    tokens = int(batch["attention_mask"][row].sum())
    return {name: value[row : row + 1, :tokens] for name, value in model_inputs(batch).items()}


def test_what_layers_hold_is_what_transformers_computes_with(teacher: Path, batch: Batch) -> None:
    """The softmax of the scores is the attention that it records."""
    row = of_row(batch, 0)
    held = held_by(load_classifier(teacher).eval(), row)
    eager = BertForSequenceClassification.from_pretrained(teacher, attn_implementation="eager").eval()
    answer = eager(**row, output_attentions=True, output_hidden_states=True)
    assert len(held.scores) == 4
    for own, theirs in zip(held.scores, answer.attentions, strict=True):
        torch.testing.assert_close(own.softmax(dim=-1), theirs, atol=1e-5, rtol=0.0)
    for own, theirs in zip(held.states, answer.hidden_states, strict=True):
        torch.testing.assert_close(own, theirs, atol=1e-4, rtol=1e-4)


def test_a_student_is_compared_with_every_second_layer_of_a_teacher_twice_as_deep(teacher: Path, batch: Batch) -> None:
    """Row by row as by torch's own mean squared error over that row alone: padding does not count."""
    theirs, own = freeze(load_classifier(teacher)), make_student(teacher, student_settings(layers=2), seed=0).model.eval()
    found = LayersLoss(theirs)(own, batch)
    for row in range(12):
        wanted, held = held_by(theirs, of_row(batch, row)), held_by(own, of_row(batch, row))
        pairs = [(held.states[number], wanted.states[2 * number]) for number in range(3)]
        pairs += [(held.scores[0], wanted.scores[1]), (held.scores[1], wanted.scores[3])]
        torch.testing.assert_close(found[row], sum(mse_loss(*pair) for pair in pairs), atol=1e-4, rtol=1e-4)


def test_a_student_that_is_its_teacher_has_no_layers_to_learn(teacher: Path, batch: Batch) -> None:
    same = make_student(teacher, student_settings(layers=None), seed=0).model.eval()
    found = LayersLoss(freeze(load_classifier(teacher)))(same, batch)
    torch.testing.assert_close(found, torch.zeros(12), atol=1e-6, rtol=0.0)


def test_copies_are_all_variants_of_all_rows(made: tuple[Path, Path]) -> None:
    shards = Shards(made[1])
    copies = Copies(shards)
    assert len(copies) == 60 * shards.manifest.variants
    rows = shards.rows("train", 2)
    batch = copies.batch(MicroBatch(np.arange(60, 63), 0, 0.0, 1.0))
    for number, ids in enumerate(rows.lists("input_ids")[:3]):
        assert batch["input_ids"][number, : len(ids)].tolist() == ids.tolist()
    assert batch["labels"].tolist() == rows.labels()[:3].tolist()


@pytest.fixture(scope="module")
def taught(teacher: Path, made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student after its first phase; read only."""
    folder, settings = tmp_path_factory.mktemp("taught"), student_settings({"num_train_epochs": 3}, layers=2)
    optimiser, sources = settings.optimiser, Sources.open(teacher, *made)
    cost = train_layers(sources, settings, optimiser, folder / "states", folder / "out")
    assert cost["steps"] == 3 * -(-len(Copies(Shards(made[1]))) // optimiser.batch_size)
    return folder / "out"


def test_layers_come_nearer_to_the_teachers(teacher: Path, taught: Path, batch: Batch) -> None:
    student = load_classifier(taught).eval()
    begun = make_student(teacher, student_settings(layers=2), seed=0).model.eval()
    loss = LayersLoss(freeze(load_classifier(teacher)))
    with torch.no_grad():
        assert loss(student, batch).mean() < 0.9 * loss(begun, batch).mean()


def test_the_second_phase_starts_from_what_the_first_has_written(teacher: Path, taught: Path) -> None:
    begun = make_student(teacher, student_settings(start={"checkpoint": str(taught)}), seed=7).model.state_dict()
    for name, value in AutoModelForSequenceClassification.from_pretrained(taught).state_dict().items():
        torch.testing.assert_close(begun[name], value)
    assert load_tokenizer(taught).get_vocab() == load_tokenizer(teacher).get_vocab()


def test_only_a_bert_teaches_layers_and_only_one_as_wide_as_itself(
    teacher: Path, made: tuple[Path, Path], tmp_path: Path
) -> None:
    sources = Sources.open(teacher, *made)
    narrow = student_settings(layers=2, hidden=16, heads=2, intermediate=32)
    with pytest.raises(PipelineError, match="here a bert of 4 layers, 32 wide, teaches one of 2, 16 wide"):
        train_layers(sources, narrow, narrow.optimiser, tmp_path / "states", tmp_path / "out")
    assert not (tmp_path / "out").exists()
