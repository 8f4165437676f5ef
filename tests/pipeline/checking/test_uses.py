import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.parameters import MOVIES, SCOUTED, changed, check
from tests.world import make_tokenizer, rewrite, save_on_hub

Write = Callable[[str, str], Path]

REGRESSION: dict[str, Any] = {
    f"{MOVIES}.kind": "regression",
    f"{MOVIES}.metric": "pearson",
    f"{MOVIES}.corpus.labels": None,
    "augment.perturbation.radius": {"divergence": 0.01},
}
RECIPE_OF_WORDS: dict[str, Any] = {"augment.recipes": [["masked_lm"]]}


def about(model: Path, fine_tune: bool = True) -> dict[str, Any]:
    """Changes that make this model the teacher, and one student of it."""
    settings = {"model": str(model), "max_length": 16, "fine_tune": fine_tune}
    return {f"{MOVIES}.teacher": settings, f"{MOVIES}.corpus.labels": ["bad", "good"], "students": {"half": {"layers": 2}}}


def of_hub(model: str, max_length: int = 16) -> dict[str, Any]:
    return {f"{MOVIES}.teacher.model": model, f"{MOVIES}.teacher.max_length": max_length}


@pytest.fixture
def model(teacher: Path, tmp_path: Path) -> Path:
    """A copy of the tiny classifier that a test may change."""
    return Path(shutil.copytree(teacher, tmp_path / "model"))


@pytest.mark.parametrize("changes", [{}, {"scout": None}, SCOUTED, {"distill.variants": {"worst_of": 3}}, REGRESSION])
def test_settings_that_agree_are_sound(write: Write, changes: dict[str, Any]) -> None:
    """A scout is needed only where a task aims at one."""
    status, text = check(write("params.yaml", changed(changes)))
    assert status == 0, text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"runtime.report_to": ["tensorbord"]}, "runtime.report_to names tensorbord, which is not installed"),
        (
            {"augment.perturbation.start": 0.0, "augment.variants": 1},
            f"{MOVIES}: the divergence of the teacher from its own clean output has no gradient at start: 0",
        ),
        (SCOUTED | {"augment.perturbation.objective": "noise"}, f"{MOVIES}: the objective noise follows no gradient"),
        (SCOUTED | {"augment.recipes": [["mask"]]}, f"{MOVIES}: no recipe perturbs, so a scout has nothing to do"),
        (REGRESSION | {"augment.perturbation.radius": {"flips": 0.1}}, f"{MOVIES}: the answers of a regression do not flip"),
        (RECIPE_OF_WORDS, f"{MOVIES}: a recipe asks for masked_lm, but the task's words is null"),
        (
            {f"{MOVIES}.words": {"model": "data/raw/all-MiniLM-L6-v2", "fit": True}},
            f"{MOVIES}: no recipe asks for masked_lm, so a masked language model has nothing to do",
        ),
        (SCOUTED | {"scout.snapshots": 8}, "students.half, task movies: variants: by_progress follows the scout through its 8"),
        (
            {"students": {"half": {"layers": 2, "variants": {"worst_of": 4}}}},
            "students.half, task movies: variants: worst_of: 4 is asked for, but the shards hold 3 variants",
        ),
        ({"augment.variants": 0}, "students.half, task movies: there is no variant; set augment.variants above 0"),
        ({f"{MOVIES}.corpus.dev": None}, f"{MOVIES}.corpus.dev: the corpus has no dev split; say which share of train"),
        (
            {f"{MOVIES}.metric": "f1", f"{MOVIES}.corpus.labels": ["a", "b", "c"]},
            f"{MOVIES}.metric: f1: it is the F1 of the second of two labels, and there are 3; choose macro_f1",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_told_with_their_place(
    write: Write, changes: dict[str, Any], sentence: str
) -> None:
    status, text = check(write("params.yaml", changed(changes)))
    assert status == 1
    assert f"  - {sentence}" in text, text
    assert "half_plain" not in text, "the control wants no variants"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"students": {"half": {"layers": 5}}},
            "students.half, cut from {}: layers: 5 cannot be taken from a teacher of 4 layers, numbered 0 to 3; give a number",
        ),
        ({"students": {"half": {"layers": 2, "hidden": 64}}}, "hidden: 64 is more than the 32 of what the student is cut from"),
        ({f"{MOVIES}.teacher.max_length": 64}, f"{MOVIES}.teacher: max_length is 64, but "),
        (RECIPE_OF_WORDS | {f"{MOVIES}.words": {"model": "data/nope", "fit": True}}, f"{MOVIES}.words: no model can be loaded"),
        ({f"{MOVIES}.teacher.model": "bert-base--uncased"}, "no model can be loaded from bert-base--uncased: there is no such"),
        (
            {"students": {"half": {"start": {"checkpoint": "data/nope"}}}},
            "students.half: no model can be loaded from ",
        ),
        (SCOUTED | {"scout.layers": 99}, "scout, cut from {}: layers: 99 cannot be taken"),
    ],
)
def test_what_a_model_does_not_have_is_told_before_any_stage_runs(
    changes: dict[str, Any], sentence: str, write: Write, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert check(write("params.yaml", changed(about(teacher))))[0] == 0
    status, text = check(write("params.yaml", changed(about(teacher) | changes)))
    assert status == 1
    assert sentence.format(teacher) in text, text


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "it has no weights as safetensors; .bin files are not read, since they can run code; load them where you",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "no model can be loaded from {}: "),
        (
            lambda folder: rewrite(folder / "config.json", problem_type="multi_label_classification"),
            "{} gives each label an answer of its own (problem_type: multi_label_classification), but ",
        ),
    ],
)
def test_a_folder_that_is_no_classifier_is_told_once_before_any_stage_runs(
    harm: Callable[[Path], None], sentence: str, write: Write, model: Path
) -> None:
    words = {f"{MOVIES}.words": {"model": str(model), "fit": True}} | RECIPE_OF_WORDS
    harm(model)
    status, text = check(write("params.yaml", changed(about(model, fine_tune=False) | words)))
    assert status == 1
    assert sentence.format(model) in text, text
    assert ": 1 fault, nothing was written" in text, "one cause is told once"


@pytest.mark.parametrize("labels", [["good", "bad"], ["bad", "good", "fine"]])
def test_other_labels_than_those_of_an_adopted_classifier_are_told_before_any_stage_runs(
    labels: list[str], write: Write, teacher: Path
) -> None:
    _, text = check(write("params.yaml", changed(about(teacher, fine_tune=False) | {f"{MOVIES}.corpus.labels": labels})))
    assert f"{MOVIES}.teacher: {teacher} answers ['bad', 'good'], but the labels of movies are" in text


def test_a_model_in_the_cache_of_the_hub_is_asked_as_one_in_a_folder_is(write: Write, hub: Path) -> None:
    students = {"students": {"wide": {"hidden": 4096, "heads": 4}, "deep": {"layers": 99, "variants": "none"}}}
    status, text = check(write("params.yaml", changed(of_hub("org/teacher") | students)))
    assert status == 1
    assert "students.wide, cut from org/teacher: hidden: 4096 is more than" in text
    assert "students.deep, cut from org/teacher: layers: 99 cannot be taken" in text
    assert "note:" not in text
    assert str(hub) not in text
    save_on_hub(hub, {"v1": 1})
    _, text = check(write("params.yaml", changed(of_hub("org/teacher@v1", 4096))))
    assert "max_length is 4096, but org/teacher@v1 takes at most" in text
    (weights,) = hub.glob(f"models--org--teacher/snapshots/{0:040x}/*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    _, text = check(write("params.yaml", changed(of_hub("org/teacher"))))
    assert f"{MOVIES}.teacher: no model can be loaded from org/teacher: it has no weights as safetensors" in text


@pytest.mark.parametrize(
    ("model", "fetch"),
    [("org/other", "org/other"), ("org/teacher@v2", "org/teacher --revision v2"), ("org/teacher", "org/teacher")],
)
def test_a_model_of_the_hub_that_is_not_here_as_a_whole_is_noted(write: Write, hub: Path, model: str, fetch: str) -> None:
    for path in hub.glob("models--org--teacher/snapshots/*/tokenizer*"):
        path.unlink()
    status, text = check(write("params.yaml", changed(of_hub(model))))
    assert status == 0, text
    assert f"note: {model} is not on this machine yet, so it is not checked; after `hf download {fetch}` it is" in text


def test_a_checkpoint_that_is_not_whole_or_has_another_tokenizer_is_told_of_students_and_words_too(
    write: Write, teacher: Path, model: Path
) -> None:
    at = about(teacher) | RECIPE_OF_WORDS | {f"{MOVIES}.words": {"model": str(model), "fit": True}}
    at |= {"students": {"half": {"layers": 2, "start": {"checkpoint": str(model)}}}}
    weights = safetensors.torch.load_file(model / "model.safetensors")
    extra = {"bert.encoder.layer.9.output.dense.bias": torch.ones(32)}
    safetensors.torch.save_file(weights | extra, model / "model.safetensors", metadata={"format": "pt"})
    _, text = check(write("params.yaml", changed(at)))
    lost = f"{model} holds 1 weight that transformers does not load (bert.encoder.layer.9.output.dense.bias)"
    assert f"  - {MOVIES}.words: {lost}" in text, text
    assert f"  - students.half, cut from {model}: {lost}" in text, text
    safetensors.torch.save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    make_tokenizer(types=False).save_pretrained(model)
    _, text = check(write("params.yaml", changed(at)))
    assert f"  - students.half, cut from {model}: {model} has another tokenizer (" in text, text
