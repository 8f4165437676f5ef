import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.parameters import MOVIES, WITH_SURROGATE, changed, check
from tests.world import make_tokenizer, rewrite, save_on_hub

Write = Callable[[str, str], Path]

REGRESSION: dict[str, Any] = {
    f"{MOVIES}.kind": "regression",
    f"{MOVIES}.metric": "pearson",
    f"{MOVIES}.corpus.labels": None,
    "perturbation.epsilon": {"divergence": 0.01},
}
RECIPE_OF_WORDS: dict[str, Any] = {"augment.recipes": [["masked_lm"]]}


def about(model: Path, fine_tune: bool = True) -> dict[str, Any]:
    """Changes that make this model the teacher, and one student of it."""
    settings = {"model": str(model), "max_length": 16, "fine_tune": fine_tune}
    return {
        f"{MOVIES}.teacher": settings,
        f"{MOVIES}.corpus.labels": ["bad", "good"],
        "students": {"half": {"num_hidden_layers": 2}},
    }


def of_hub(model: str, max_length: int = 16) -> dict[str, Any]:
    return {f"{MOVIES}.teacher.model": model, f"{MOVIES}.teacher.max_length": max_length}


@pytest.fixture
def model(teacher: Path, tmp_path: Path) -> Path:
    """A copy of the tiny classifier that a test may change."""
    return Path(shutil.copytree(teacher, tmp_path / "model"))


@pytest.mark.parametrize("changes", [{}, WITH_SURROGATE, REGRESSION])
def test_settings_that_agree_are_sound(write: Write, changes: dict[str, Any]) -> None:
    status, text = check(write("params.yaml", changed(changes)))
    assert status == 0, text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"runtime.report_to": ["tensorbord"]}, "runtime.report_to names tensorbord, which is not installed"),
        (
            {"perturbation.init": 0.0, "augment.variants": 1},
            "perturbation: the teacher's divergence from its clean output has no gradient at δ = 0; set init above 0",
        ),
        (
            WITH_SURROGATE | {"surrogate.checkpoints": 8},
            "students.half, task movies: variant_policy: curriculum needs a variant for each of the surrogate's 8 checkpoints",
        ),
        ({"augment.variants": 0}, "students.half, task movies: there is no variant; set augment.variants above 0"),
        ({f"{MOVIES}.corpus.dev": None}, f"{MOVIES}.corpus.dev: the corpus has no dev split; set the share of train"),
        (
            {f"{MOVIES}.metric": "f1", f"{MOVIES}.corpus.labels": ["a", "b", "c"]},
            f"{MOVIES}: metric f1 is the F1 of the second of two labels, and there are 3; choose macro_f1",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_listed_with_their_place(
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
            {"students": {"half": {"num_hidden_layers": 5}}},
            "students.half, cut from {}: 5 layers (0, 0, 1, 2, 3) cannot be kept of 4, numbered 0 to 3; give num_hidden_layers",
        ),
        (
            {"students": {"half": {"num_hidden_layers": 2, "hidden_size": 64}}},
            "hidden_size: 64 is more than the 32 of the model that the student is cut from",
        ),
        ({f"{MOVIES}.teacher.max_length": 64}, f"{MOVIES}.teacher: max_length is 64, but "),
        (RECIPE_OF_WORDS | {"masked_lm.model": "data/nope"}, "masked_lm, task movies: no model can be loaded"),
        ({f"{MOVIES}.teacher.model": "bert-base--uncased"}, "no model can be loaded from bert-base--uncased: there is no such"),
        (
            {"students": {"half": {"initial_weights": {"checkpoint": "data/nope"}}}},
            "students.half: no model can be loaded from ",
        ),
        (WITH_SURROGATE | {"surrogate": {"num_hidden_layers": 99, "checkpoints": 2}}, "surrogate, cut from {}: 99 layers ("),
    ],
)
def test_what_a_model_does_not_have_is_listed_before_any_stage_runs(
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
            "{} predicts each label independently (problem_type: multi_label_classification), but ",
        ),
    ],
)
def test_a_folder_that_is_no_classifier_is_listed_once_before_any_stage_runs(
    harm: Callable[[Path], None], sentence: str, write: Write, model: Path
) -> None:
    words = {"masked_lm.model": str(model)} | RECIPE_OF_WORDS
    harm(model)
    status, text = check(write("params.yaml", changed(about(model, fine_tune=False) | words)))
    assert status == 1
    assert sentence.format(model) in text, text
    assert ": 1 error, nothing was written" in text, "one cause is listed once"


@pytest.mark.parametrize("labels", [["good", "bad"], ["bad", "good", "fine"]])
def test_other_labels_than_those_of_an_adopted_classifier_are_listed_before_any_stage_runs(
    labels: list[str], write: Write, teacher: Path
) -> None:
    _, text = check(write("params.yaml", changed(about(teacher, fine_tune=False) | {f"{MOVIES}.corpus.labels": labels})))
    assert f"{MOVIES}.teacher: {teacher} predicts ['bad', 'good'], but the labels of movies are" in text


def test_a_model_in_the_cache_of_the_hub_is_asked_as_one_in_a_folder_is(write: Write, hub: Path) -> None:
    students = {
        "students": {
            "wide": {"hidden_size": 4096, "num_attention_heads": 4},
            "deep": {"num_hidden_layers": 99, "variant_policy": "none"},
        }
    }
    status, text = check(write("params.yaml", changed(of_hub("org/teacher") | students)))
    assert status == 1
    assert "students.wide, cut from org/teacher: hidden_size: 4096 is more than" in text
    assert "students.deep, cut from org/teacher: 99 layers (" in text
    assert "note:" not in text
    assert str(hub) not in text
    save_on_hub(hub, {"v1": 1})
    _, text = check(write("params.yaml", changed(of_hub("org/teacher@v1", 4096))))
    assert "max_length is 4096, but org/teacher@v1 takes at most" in text
    (weights,) = hub.glob(f"models--org--teacher/*/{0:040x}/*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    _, text = check(write("params.yaml", changed(of_hub("org/teacher"))))
    assert f"{MOVIES}.teacher: no model can be loaded from org/teacher: it has no weights as safetensors" in text


@pytest.mark.parametrize(
    ("model", "fetch"),
    [("org/other", "org/other"), ("org/teacher@v2", "org/teacher --revision v2"), ("org/teacher", "org/teacher")],
)
def test_a_model_of_the_hub_that_is_not_here_as_a_whole_is_noted(write: Write, hub: Path, model: str, fetch: str) -> None:
    for path in hub.glob("models--org--teacher/*/*/tokenizer*"):
        path.unlink()
    status, text = check(write("params.yaml", changed(of_hub(model))))
    assert status == 0, text
    assert f"note: {model} is not on this machine yet, so it is not checked; download it with `hf download {fetch}`" in text


def test_a_checkpoint_that_is_not_whole_or_has_another_tokenizer_is_listed_for_students_and_words_too(
    write: Write, teacher: Path, model: Path
) -> None:
    at = about(teacher) | RECIPE_OF_WORDS | {"masked_lm.model": str(model)}
    at |= {"students": {"half": {"num_hidden_layers": 2, "initial_weights": {"checkpoint": str(model)}}}}
    weights = safetensors.torch.load_file(model / "model.safetensors")
    extra = {"bert.encoder.layer.9.output.dense.bias": torch.ones(32)}
    safetensors.torch.save_file(weights | extra, model / "model.safetensors", metadata={"format": "pt"})
    _, text = check(write("params.yaml", changed(at)))
    lost = f"{model} holds 1 weight that transformers does not load (bert.encoder.layer.9.output.dense.bias)"
    assert f"  - masked_lm, task movies: {lost}" in text, text
    assert f"  - students.half, cut from {model}: {lost}" in text, text
    safetensors.torch.save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    make_tokenizer(types=False).save_pretrained(model)
    _, text = check(write("params.yaml", changed(at)))
    assert f"  - students.half, cut from {model}: {model} has another tokenizer (" in text, text
