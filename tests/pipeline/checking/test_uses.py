import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from transformers import AutoTokenizer

from tests.parameters import MOVIES, ROOT, SCOUTED, changed, check
from tests.world import make_task, make_tokenizer, save_on_hub, save_teacher

REGRESSION = {
    f"{MOVIES}.kind": "regression",
    f"{MOVIES}.metric": "pearson",
    f"{MOVIES}.corpus.labels": None,
    "augment.perturbation.radius": {"divergence": 0.01},
}


def test_a_service_that_is_not_installed_is_told_before_any_stage_runs(write: Callable[[str, str], Path]) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["runtime"]["report_to"] = ["tensorbord"]
    status, text = check(write("params.yaml", yaml.safe_dump(content)))
    assert (status, "runtime.report_to names tensorbord, which is not installed" in text) == (1, True)


def test_a_scout_that_its_task_aims_at_is_sound(write: Callable[[str, str], Path]) -> None:
    status, text = check(write("params.yaml", changed(SCOUTED)))
    assert status == 0, text


def test_a_section_scout_is_needed_only_where_a_task_aims_at_one(write: Callable[[str, str], Path]) -> None:
    """Who replaces the default task by one of their own need not clear away what that one asked for."""
    for changes in ({}, {"scout": None}):
        status, text = check(write("params.yaml", changed(changes)))
        assert status == 0, text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"augment.perturbation.start": 0.0, "augment.variants": 1},
            f"{MOVIES}: the divergence of the teacher from its own clean output has no gradient at start: 0",
        ),
        (SCOUTED | {"augment.perturbation.objective": "noise"}, f"{MOVIES}: the objective noise follows no gradient"),
        (SCOUTED | {"augment.recipes": [["mask"]]}, f"{MOVIES}: no recipe perturbs, so a scout has nothing to do"),
        (REGRESSION | {"augment.perturbation.radius": {"flips": 0.1}}, f"{MOVIES}: the answers of a regression do not flip"),
        ({"augment.recipes": [["masked_lm"]]}, "tasks.movies: a recipe asks for masked_lm, but the task's words is null"),
        (
            {f"{MOVIES}.words": {"model": "data/raw/all-MiniLM-L6-v2", "fit": True}},
            "tasks.movies: no recipe asks for masked_lm, so a masked language model has nothing to do",
        ),
    ],
)
def test_what_contradicts_itself_is_a_sentence_that_names_the_place(
    write: Callable[[str, str], Path], changes: dict[str, Any], sentence: str
) -> None:
    status, text = check(write("params.yaml", changed(changes)))
    assert status == 1
    assert f"  - {sentence}" in text, text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            SCOUTED | {"scout.snapshots": 8},
            "students.half, task movies: variants: by_progress follows the scout through its 8 snapshots, but at the last 5 of",
        ),
        ({"distill.variants": {"worst_of": 4}}, "worst_of: 4 is asked for, but the shards hold 3 variants"),
        ({"augment.variants": 0}, "students.half, task movies: there is no variant; set augment.variants above 0"),
    ],
)
def test_what_a_student_wants_and_no_stage_makes_is_told_before_any_runs(
    changes: dict[str, Any], sentence: str, write: Callable[[str, str], Path]
) -> None:
    status, text = check(write("params.yaml", changed(changes)))
    assert status == 1
    assert sentence in text, text
    assert "half_plain" not in text, "the control wants no variants"


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ({"layers": 5}, "pretrained: layers: 5 cannot be taken from a teacher of 4 layers, numbered 0 to 3; give a number"),
        ({"layers": 2, "hidden": 64}, "pretrained: hidden: 64 is more than the 32 of what the student is cut from"),
        ({"layers": 2, "hidden": 30, "heads": 4}, "pretrained: hidden: 30 cannot be shared by heads: 4"),
    ],
)
def test_a_size_that_its_teacher_does_not_have_is_told_before_the_teacher_is_made(
    size: dict[str, Any], sentence: str, write: Callable[[str, str], Path], tmp_path: Path
) -> None:
    model = {"model": str(save_teacher(tmp_path / "pretrained", make_task())), "max_length": 16, "fine_tune": True}
    at = {f"{MOVIES}.teacher": model, "students": {"half": size}}
    status, text = check(write("params.yaml", changed(at)))
    assert status == 1
    assert "students.half, cut from " in text
    assert sentence in text, text
    assert check(write("params.yaml", changed(at | {"students": {"half": {"layers": 2}}})))[0] == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({f"{MOVIES}.teacher.max_length": 64}, "tasks.movies.teacher: max_length is 64, but "),
        (
            {f"{MOVIES}.words": {"model": "data/nope", "fit": True}, "augment.recipes": [["masked_lm"]]},
            "tasks.movies.words: no model can be loaded from data/nope: there is no such folder",
        ),
        ({f"{MOVIES}.teacher.model": "data/nope"}, "no model can be loaded from data/nope: there is no such folder"),
        (
            {f"{MOVIES}.teacher.model": "some/where/else"},
            "no model can be loaded from some/where/else: there is no such folder",
        ),
        (
            {"students": {"half": {"start": {"checkpoint": "data/nope"}}}},
            "students.half: no model can be loaded from data/nope",
        ),
        ({f"{MOVIES}.corpus.dev": None}, "tasks.movies.corpus.dev: the corpus has no dev split; say which share of train"),
        (
            {f"{MOVIES}.metric": "f1", f"{MOVIES}.corpus.labels": ["a", "b", "c"]},
            "tasks.movies.metric: f1: it is the F1 of the second of two labels, and there are 3; choose macro_f1",
        ),
    ],
)
def test_what_can_be_known_of_models_and_labels_is_told_before_any_stage_runs(
    changes: dict[str, Any], sentence: str, write: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    model = {"model": str(save_teacher(tmp_path / "pretrained", make_task())), "max_length": 16, "fine_tune": True}
    sound = {f"{MOVIES}.teacher": model, "students": {"half": {"layers": 2}}}
    assert check(write("params.yaml", changed(sound)))[0] == 0
    status, text = check(write("params.yaml", changed(sound | changes)))
    assert status == 1
    assert sentence in text, text


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def an_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def states_of_a_training(folder: Path) -> None:
    (folder / "config.json").unlink()
    for step in (90, 100):
        (folder / f"checkpoint-{step}").mkdir()


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def of_fewer_tokens(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 7}))


def of_several_labels_a_row(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (without_weights, "it has no weights as safetensors; save the model there (save_pretrained)"),
        (pickled, "it has no weights as safetensors; .bin files are not read, since they can run code; load them where you"),
        (an_adapter, "it has no config.json; it holds an adapter: merge that into its model (merge_and_unload) and save the"),
        (states_of_a_training, "it has no config.json; name one of its checkpoints, such as {}/checkpoint-100"),
        (no_json, "no model can be loaded from {}: "),
        (of_fewer_tokens, "{} knows 7 tokens, but its tokenizer gives "),
        (of_several_labels_a_row, "{} gives each label an answer of its own (problem_type: multi_label_classification), but "),
    ],
)
def test_a_folder_that_is_no_classifier_is_told_before_any_stage_runs(
    harm: Callable[[Path], None], sentence: str, write: Callable[[str, str], Path], tmp_path: Path
) -> None:
    model = save_teacher(tmp_path / "finished", make_task())
    teacher = {"model": str(model), "max_length": 16, "fine_tune": False}
    words = {"model": str(model), "fit": True}
    sound = {f"{MOVIES}.teacher": teacher, f"{MOVIES}.corpus.labels": ["bad", "good"], "students": {"half": {"layers": 2}}}
    sound |= {f"{MOVIES}.words": words, "augment.recipes": [["masked_lm"]]}
    assert check(write("params.yaml", changed(sound)))[0] == 0
    harm(model)
    status, text = check(write("params.yaml", changed(sound)))
    assert status == 1
    assert sentence.format(model) in text, text
    if harm is not of_fewer_tokens:  # of which file and tokenizer each say that they do not fit
        assert ": 1 fault, nothing was written" in text, "one cause is told once"


@pytest.mark.parametrize("labels", [["good", "bad"], ["bad", "fine"], ["bad", "good", "fine"]])
def test_other_labels_than_those_of_an_adopted_classifier_are_told_before_any_stage_runs(
    labels: list[str], write: Callable[[str, str], Path], tmp_path: Path
) -> None:
    model = str(save_teacher(tmp_path / "finished", make_task()))
    settings = {
        f"{MOVIES}.teacher": {"model": model, "max_length": 16, "fine_tune": False},
        "students": {"half": {"layers": 2}},
    }
    at = settings | {f"{MOVIES}.corpus.labels": labels}
    assert (
        f"tasks.movies.teacher: {model} answers ['bad', 'good'], but the labels of movies are"
        in check(write("params.yaml", changed(at)))[1]
    )


def test_what_a_student_wants_and_some_stage_makes_is_sound(write: Callable[[str, str], Path]) -> None:
    for changes in (SCOUTED, {"distill.variants": {"worst_of": 3}}, REGRESSION):
        status, text = check(write("params.yaml", changed(changes)))
        assert status == 0, text


def of_hub(model: str) -> dict[str, Any]:
    return {f"{MOVIES}.teacher.model": model, f"{MOVIES}.teacher.max_length": 16}


def test_a_model_in_the_cache_of_the_hub_is_asked_as_one_in_a_folder_is(write: Callable[[str, str], Path], hub: Path) -> None:
    students = {"students": {"wide": {"hidden": 4096, "heads": 4}, "deep": {"layers": 99, "variants": "none"}}}
    status, text = check(write("params.yaml", changed(of_hub("org/teacher") | students)))
    assert status == 1
    assert "students.wide, cut from org/teacher: hidden: 4096 is more than" in text
    assert "students.deep, cut from org/teacher: layers: 99 cannot be taken" in text
    assert "note:" not in text
    status, text = check(write("params.yaml", changed(of_hub("org/teacher") | {f"{MOVIES}.teacher.max_length": 4096})))
    assert "tasks.movies.teacher: max_length is 4096, but org/teacher takes at most" in text
    assert str(hub) not in text


def test_a_model_of_the_hub_that_is_not_here_yet_is_noted(write: Callable[[str, str], Path], hub: Path) -> None:
    status, text = check(write("params.yaml", changed(of_hub("org/other"))))
    assert status == 0, text
    assert "note: org/other is not on this machine yet, so it is not checked; after `hf download org/other` it is" in text


def test_a_revision_of_a_model_is_asked_where_it_is_here_and_noted_where_it_is_not(
    write: Callable[[str, str], Path], hub: Path
) -> None:
    save_on_hub(hub, {"v1": 1})
    longer = {f"{MOVIES}.teacher.max_length": 4096}
    _, text = check(write("params.yaml", changed(of_hub("org/teacher@v1") | longer)))
    assert "max_length is 4096, but org/teacher@v1 takes at most" in text
    _, text = check(write("params.yaml", changed(of_hub("org/teacher@v2"))))
    assert "note: org/teacher@v2 is not on this machine yet" in text
    assert "after `hf download org/teacher --revision v2` it is" in text
    _, text = check(write("params.yaml", changed(of_hub("org/teacher@"))))
    assert "no model can be loaded from org/teacher@: there is no such folder" in text


@pytest.mark.parametrize("missing", ["tokenizer*", "*.safetensors"])
def test_a_model_of_which_the_cache_has_a_part_is_not_asked(write: Callable[[str, str], Path], hub: Path, missing: str) -> None:
    for path in hub.glob(f"models--org--teacher/snapshots/*/{missing}"):
        path.unlink()
    status, text = check(write("params.yaml", changed(of_hub("org/teacher"))))
    assert (status, "note: org/teacher is not on this machine yet" in text) == (0, True)


def test_weights_that_are_not_read_are_told_of_a_model_of_the_hub_too(write: Callable[[str, str], Path], hub: Path) -> None:
    (weights,) = hub.glob("models--org--teacher/snapshots/*/*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    status, text = check(write("params.yaml", changed(of_hub("org/teacher"))))
    assert status == 1
    assert "tasks.movies.teacher: no model can be loaded from org/teacher: it has no weights as safetensors" in text


def test_what_can_be_no_name_of_the_hub_is_a_fault_beside_the_others(write: Callable[[str, str], Path], hub: Path) -> None:
    status, text = check(write("params.yaml", changed(of_hub("bert-base--uncased") | {"runtime.trainers": 0})))
    assert status == 1
    assert "bert-base--uncased: there is no such folder" in text
    assert "runtime.trainers" in text


def test_a_scout_that_its_teacher_is_too_small_for_is_a_fault(write: Callable[[str, str], Path], hub: Path) -> None:
    _, text = check(write("params.yaml", changed(SCOUTED | {"scout.layers": 99} | of_hub("org/teacher"))))
    assert "scout, cut from org/teacher: layers: 99 cannot be taken" in text


def test_a_model_that_is_not_whole_is_told_of_students_and_words_too(write: Callable[[str, str], Path], tmp_path: Path) -> None:
    teacher, other = save_teacher(tmp_path / "teacher", make_task()), save_teacher(tmp_path / "other", make_task(), seed=1)
    weights = safetensors.torch.load_file(other / "model.safetensors") | {
        "bert.encoder.layer.9.output.dense.bias": torch.ones(32)
    }
    safetensors.torch.save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    at = {
        f"{MOVIES}.teacher": {"model": str(teacher), "max_length": 16, "fine_tune": True},
        f"{MOVIES}.words": {"model": str(other), "fit": True},
        "augment.recipes": [["masked_lm"]],
        "students": {"half": {"layers": 2, "start": {"checkpoint": str(other)}}},
    }
    _, text = check(write("params.yaml", changed(at)))
    lost = f"{other} holds 1 weight that transformers does not load (bert.encoder.layer.9.output.dense.bias)"
    assert f"  - tasks.movies.words: {lost}" in text, text
    assert f"  - students.half, cut from {other}: {lost}" in text, text


def test_a_checkpoint_with_another_tokenizer_than_the_teachers_is_told_before_any_stage_runs(
    write: Callable[[str, str], Path], tmp_path: Path
) -> None:
    teacher, other = save_teacher(tmp_path / "teacher", make_task()), save_teacher(tmp_path / "other", make_task())
    make_tokenizer(types=False).save_pretrained(other)
    at = {
        f"{MOVIES}.teacher": {"model": str(teacher), "max_length": 16, "fine_tune": True},
        "students": {"half": {"layers": 2, "start": {"checkpoint": str(other)}}},
    }
    _, text = check(write("params.yaml", changed(at)))
    assert f"  - students.half, cut from {other}: {other} has another tokenizer (" in text, text


def test_each_model_is_opened_once(write: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = str(save_teacher(tmp_path / "pretrained", make_task())), list[str]()
    original = AutoTokenizer.from_pretrained

    def note(pretrained_model_name_or_path: Path, **more: Any) -> Any:
        read.append(str(pretrained_model_name_or_path))
        return original(pretrained_model_name_or_path, **more)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", note)
    settings = {
        f"{MOVIES}.teacher": {"model": model, "max_length": 16, "fine_tune": True},
        f"{MOVIES}.words": {"model": model, "fit": True},
        "augment.recipes": [["masked_lm"]],
        "students": {"half": {"layers": 2}, "other": {"layers": 1, "start": {"checkpoint": model}}},
    }
    status, text = check(write("params.yaml", changed(settings)))
    assert (status, read) == (0, [model]), text
