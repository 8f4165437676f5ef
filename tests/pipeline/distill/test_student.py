import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, BertModel, PreTrainedModel, set_seed

from pipeline.config.errors import PipelineError
from pipeline.distill.narrowing import NARROWABLE
from pipeline.distill.student import Checkpoint, SizeSettings, chosen_layers, make_student, principal_map
from pipeline.models.architectures import FIRST_LAYER_APART, SUPPORTED
from pipeline.models.forward import logits_from_ids, word_embeddings
from pipeline.models.loading import load_classifier
from pipeline.perturbation.inputs import carried
from tests.architectures import CONFIGURATIONS, of_type, rows_of
from tests.world import make_tokenizer

WHOLE = SizeSettings(start="teacher")
IDS = {"input_ids": torch.tensor([[2, 7, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_a_whole_student_of_every_type_answers_as_its_teacher(kind: str, tmp_path: Path) -> None:
    teacher, batch = of_type(kind), rows_of(kind)
    teacher.save_pretrained(tmp_path)
    student = make_student(tmp_path, WHOLE, seed=0)
    assert torch.equal(logits_from_ids(student.model.eval(), batch), logits_from_ids(teacher, batch))
    assert (student.facts["parameters_fresh"], student.facts["parameters_mapped"], student.map) == (0, 0, None)


def one_layer_alone(model: PreTrainedModel, number: int) -> PreTrainedModel:
    """The model without the other of its two layers; ALBERT's two are one that is run twice."""
    for name, module in model.named_modules():
        if re.search(r"(^|\.)(layer|layers|h)$", name) and isinstance(module, torch.nn.ModuleList):
            del module[1 - number]
    model.config.num_hidden_layers = 1
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[number]]
    return model


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_a_shallower_student_of_every_type_is_the_teacher_without_the_layers_left_out(kind: str, tmp_path: Path) -> None:
    of_type(kind).save_pretrained(tmp_path / "teacher")
    kept = 0 if of_type(kind).config.model_type in FIRST_LAYER_APART else 1
    student = make_student(tmp_path / "teacher", SizeSettings(start="teacher", layers=[kept]), seed=0)
    student.model.save_pretrained(tmp_path / "student")
    batch, saved = rows_of(kind), load_classifier(tmp_path / "student")
    whole, half = logits_from_ids(of_type(kind), batch), logits_from_ids(saved, batch)
    torch.testing.assert_close(half, logits_from_ids(one_layer_alone(of_type(kind), kept), batch), atol=1e-6, rtol=1e-6)
    assert (half - whole).abs().max() > 1e-2, "the layer left out must be seen"
    assert student.facts["parameters_fresh"] == student.facts["parameters_mapped"] == 0
    assert saved.config.num_hidden_layers == len(getattr(saved.config, "layer_types", None) or [1]) == 1


def test_a_layer_that_would_lose_a_norm_in_the_first_ones_place_is_refused(tmp_path: Path) -> None:
    of_type("modernbert").save_pretrained(tmp_path)
    with pytest.raises(PipelineError, match=r"layers: \[1\]: the first layer of a 'modernbert' lacks a norm .* list with 0"):
        make_student(tmp_path, SizeSettings(start="teacher", layers=[1]), seed=0)
    assert make_student(tmp_path, SizeSettings(start="scratch", layers=[1]), seed=0).model.config.num_hidden_layers == 1


@pytest.mark.parametrize("kind", sorted({*SUPPORTED} - {*NARROWABLE}))
def test_a_type_whose_widths_cannot_be_cut_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    of_type(kind).save_pretrained(tmp_path)
    for size in ({"start": "teacher", "hidden": 8}, {"start": "teacher", "heads": 1}, {"start": "scratch", "intermediate": 16}):
        with pytest.raises(PipelineError, match=f"a '{kind}' student cannot be narrower than its teacher, only shallower"):
            make_student(tmp_path, SizeSettings.model_validate(size), seed=0)


@pytest.mark.parametrize(
    ("wanted", "depth", "expected"),
    [
        (None, 3, [0, 1, 2]),
        (3, 6, [0, 2, 4]),
        (4, 6, [0, 1, 3, 4]),
        ([1, 5], 6, [1, 5]),
    ],
)
def test_layers_are_spread_evenly_or_taken_by_number(wanted: int | list[int] | None, depth: int, expected: list[int]) -> None:
    assert chosen_layers(wanted, depth) == expected


@pytest.mark.parametrize("wanted", [7, [6], [2, 1], [1, 1], []])
def test_layers_the_teacher_does_not_have_are_refused(wanted: int | list[int]) -> None:
    with pytest.raises(PipelineError, match=r"cannot be taken from a teacher of 6 layers, numbered 0 to 5"):
        chosen_layers(wanted, 6)


def test_the_map_carries_table_and_perturbation_alike(teacher: Path) -> None:
    """At the start map(E_T[ids] + δ) = E_S[ids] + map(δ), to float accuracy."""
    student = make_student(teacher, SizeSettings(start="teacher", hidden=16, heads=2), seed=0)
    words = word_embeddings(load_classifier(teacher)).detach()[IDS["input_ids"]]
    delta = torch.randn(words.shape, generator=torch.Generator().manual_seed(0))
    own = word_embeddings(student.model).detach()[IDS["input_ids"]]
    assert torch.allclose(carried(words + delta, student.map), own + carried(delta, student.map), atol=1e-5)
    assert own.shape[-1] == 16


def test_the_map_is_the_best_of_its_rank() -> None:
    table = torch.randn(200, 12, generator=torch.Generator().manual_seed(1)) @ torch.diag(torch.linspace(3, 0.1, 12))
    linear, error = principal_map(table, 5)
    rebuilt = table @ linear @ linear.T
    singular = torch.linalg.svdvals(table.double())
    best = float((singular[5:] ** 2).sum() / (singular**2).sum())
    assert float((table - rebuilt).square().sum() / table.square().sum()) == pytest.approx(best, rel=1e-4)
    assert error == pytest.approx(best, rel=1e-4)
    assert torch.allclose(linear.T @ linear, torch.eye(5), atol=1e-5)


def test_equal_seeds_give_equal_students_and_others_do_not(teacher: Path) -> None:
    fresh = SizeSettings(start="scratch", layers=1)
    one, same, other = (make_student(teacher, fresh, seed).model.state_dict() for seed in (1, 1, 2))
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])


def test_from_scratch_nothing_is_the_teachers(teacher: Path) -> None:
    student = make_student(teacher, SizeSettings(start="scratch", hidden=8, heads=2), seed=0)
    assert student.map is None
    assert student.facts == {"start": "scratch"}
    assert word_embeddings(student.model).shape[1] == 8
    assert (
        make_student(teacher, SizeSettings(start="scratch", hidden=16, heads=4), seed=0).model.config.num_attention_heads == 4
    )


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ({"hidden": 16, "heads": 3}, "hidden: 16 cannot be shared by heads: 3"),
        ({"hidden": 64}, "hidden: 64 is more than the 32 of what the student is cut from; it is at most as wide"),
        (
            {"hidden": 16, "heads": 4},
            "hidden: 16 and heads: 4 make heads of 4; .* are 8 wide .*, so give hidden: 32",
        ),
        ({"hidden": 20}, "hidden: 20 and heads: 2 make heads of 10; .* so give hidden: 16, heads: 2"),
        ({"layers": 9}, "cannot be taken from a teacher of 4 layers"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(teacher: Path, size: dict[str, int], sentence: str) -> None:
    with pytest.raises(PipelineError, match=sentence):
        make_student(teacher, SizeSettings(start="teacher", **size), seed=0)  # type: ignore[arg-type]


def test_of_a_width_alone_the_heads_follow_and_nothing_begins_at_random(teacher: Path) -> None:
    student = make_student(teacher, SizeSettings(start="teacher", hidden=16), seed=0)
    assert student.model.config.num_attention_heads == 2
    assert student.facts["parameters_fresh"] == 0


def kin_of(teacher: Path, folder: Path, **changed: Any) -> Path:
    """Another model of the teacher's kind with its tokenizer, its weights others; a head of its own."""
    shutil.copytree(teacher, folder)
    held = json.loads((folder / "config.json").read_text()) | changed
    (folder / "config.json").write_text(json.dumps(held))
    set_seed(11)
    AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


def test_a_student_from_another_checkpoint_has_its_weights_and_the_teachers_labels(teacher: Path, tmp_path: Path) -> None:
    kin = kin_of(teacher, tmp_path / "kin", hidden_size=16, intermediate_size=24)
    student = make_student(teacher, SizeSettings(start=Checkpoint(checkpoint=str(kin)), layers=[1]), seed=0)
    source, own = load_classifier(kin).state_dict(), student.model.state_dict()
    assert student.model.config.num_hidden_layers == 1
    assert torch.equal(own["bert.embeddings.word_embeddings.weight"], source["bert.embeddings.word_embeddings.weight"])
    first, second = "bert.encoder.layer.0.output.dense.weight", "bert.encoder.layer.1.output.dense.weight"
    assert torch.equal(own[first], source[second])
    assert student.model.config.id2label == load_classifier(teacher).config.id2label
    assert student.facts["start"] == "checkpoint"


def test_the_map_to_another_checkpoint_is_the_least_squares_one(teacher: Path, tmp_path: Path) -> None:
    """No other linear map takes the teacher's table nearer to the checkpoint's (numpy's lstsq)."""
    kin = kin_of(teacher, tmp_path / "kin", hidden_size=16, intermediate_size=24)
    student = make_student(teacher, SizeSettings(start=Checkpoint(checkpoint=str(kin))), seed=0)
    table = word_embeddings(load_classifier(teacher)).detach().double().numpy()
    own = word_embeddings(student.model).detach().double().numpy()
    expected, *_ = np.linalg.lstsq(table, own, rcond=None)
    assert student.map is not None
    np.testing.assert_allclose(student.map.numpy(), expected, atol=1e-4)
    lost = np.square(table @ expected - own).sum() / np.square(own).sum()
    assert student.facts["embedding_error"] == pytest.approx(lost, abs=1e-4)
    assert 0.1 < lost < 1.0


def test_a_checkpoint_without_a_head_gets_one_by_the_seed(teacher: Path, tmp_path: Path) -> None:
    kin = kin_of(teacher, tmp_path / "kin")
    BertModel.from_pretrained(kin).save_pretrained(kin)
    size = SizeSettings(start=Checkpoint(checkpoint=str(kin)))
    heads = [make_student(teacher, size, seed=seed).model.state_dict()["classifier.weight"] for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_checkpoint_with_another_tokenizer_is_refused(teacher: Path, tmp_path: Path) -> None:
    kin = kin_of(teacher, tmp_path / "kin")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(kin)
    with pytest.raises(PipelineError, match=r"has another tokenizer \(\w+\) than the teacher \(\w+\), so it cannot read"):
        make_student(teacher, SizeSettings(start=Checkpoint(checkpoint=str(kin))), seed=0)


def test_a_checkpoint_that_takes_fewer_tokens_is_refused(teacher: Path, tmp_path: Path) -> None:
    kin = kin_of(teacher, tmp_path / "kin", max_position_embeddings=10)
    with pytest.raises(PipelineError, match=r"takes at most 10 tokens, stored rows have up to 24; start from another"):
        make_student(teacher, SizeSettings(start=Checkpoint(checkpoint=str(kin))), seed=0)


@pytest.mark.parametrize(("kind", "new"), [("bert", False), ("electra", True)])
def test_it_is_known_whether_the_head_of_a_narrower_regression_is_new(kind: str, new: bool, tmp_path: Path) -> None:
    """An ELECTRA's stream does not follow its embeddings' map, so nothing is cut out of its head."""
    of_type(kind, num_labels=1).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert make_student(tmp_path, SizeSettings(start="teacher", layers=1), seed=0).new_head is False
    assert make_student(tmp_path, SizeSettings(start="teacher", hidden=8, heads=1), seed=0).new_head is new
    assert make_student(tmp_path, SizeSettings(start="scratch"), seed=0).new_head is True
