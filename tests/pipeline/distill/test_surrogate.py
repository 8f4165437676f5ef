import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from pydantic import ValidationError

from pipeline.augment.passes import augment, score
from pipeline.config.errors import PipelineError
from pipeline.distill import scout as scout_code
from pipeline.distill.jobs import StudentJob
from pipeline.distill.launch import obtain
from pipeline.distill.scout import train_scout
from pipeline.config.settings import SurrogateSettings, StudentSettings
from pipeline.distill.student import Student, make_student
from pipeline.distill.training import train
from pipeline.models.folder import load_tokenizer, tokenizer_hash
from pipeline.models.loading import load_classifier
from pipeline.models.outputs import Scale
from pipeline.perturbation.surrogate import MAP_FILE, SCOUT_FILE, ScoutFolder
from pipeline.shards.manifest import Manifest, ShardMismatch, lineage, manifest_hash, training_hash
from pipeline.shards.reader import Shards
from pipeline.training.callbacks import NO_CHECKPOINTS
from pipeline.training.trainer import Fit
from stages.scout import main
from tests import world
from tests.world import SCORE_SETTINGS, augment_settings, make_task, runtime_at, save_prepared, save_teacher

Folders = tuple[Path, Path]
STUDENT: dict[str, Any] = world.STUDENT | {"optimiser": world.OPTIMISER | {"num_train_epochs": 3, "batch_size": 16}}
NARROW = {"layers": 2, "hidden": 16, "heads": 2, "intermediate": 32}


def settings(**changes: Any) -> SurrogateSettings:
    return SurrogateSettings.model_validate(STUDENT | {"layers": 2, "snapshots": 3} | changes)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """Scores alone: neither corpus, store nor shards are there any more."""
    folder = tmp_path_factory.mktemp("scored")
    prepared = save_prepared(folder / "prepared", make_task(), {"train": 60, "dev": 20, "test": 10})
    score(prepared, teacher, SCORE_SETTINGS, runtime_at(folder), folder / "scores")
    shutil.rmtree(prepared)
    shutil.rmtree(folder / "store")
    return folder / "scores"


@pytest.fixture(scope="module", params=[{"layers": 2}, NARROW], ids=["shallow", "narrow"])
def size(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(request.param)


@pytest.fixture(scope="module")
def scout(scored: Path, teacher: Path, size: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> ScoutFolder:
    out = tmp_path_factory.mktemp("scouts") / "tiny"
    train_scout(scored, teacher, settings(**size), out)
    return ScoutFolder(out)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_scout_is_its_snapshots_its_history_its_facts_and_a_map_only_where_it_is_narrower(
    scout: ScoutFolder, size: dict[str, Any], teacher: Path
) -> None:
    maps = [MAP_FILE] if "hidden" in size else []
    names = sorted(path.name for path in scout.folder.iterdir())
    assert names == sorted(["history.csv", SCOUT_FILE, *maps, "snapshot-1", "snapshot-2", "snapshot-3"])
    wanted, found = make_student(teacher, settings(**size), 3).map, scout.map()
    assert (found is None) == (wanted is None) == (not maps)
    assert found is None or torch.equal(found, wanted)
    for number in (1, 2, 3):
        assert load_classifier(scout.snapshot(number)).config.num_hidden_layers == 2
        assert tokenizer_hash(load_tokenizer(scout.snapshot(number))) == tokenizer_hash(load_tokenizer(teacher))


def test_the_snapshots_differ_and_none_is_the_start(scout: ScoutFolder, size: dict[str, Any], teacher: Path) -> None:
    assert len(set(scout.hashes())) == 3
    start = make_student(teacher, settings(**size), 3).model.state_dict()
    first = load_classifier(scout.snapshot(1)).state_dict()
    assert any(not torch.equal(first[name], value) for name, value in start.items())


def test_its_facts_say_what_it_learnt_from_and_how_good_its_last_state_is(
    scout: ScoutFolder, scored: Path, teacher: Path
) -> None:
    facts = scout.facts()
    assert facts.key == lineage(teacher)
    assert facts.scores == training_hash(scored)
    assert (facts.snapshots, facts.settings["snapshots"]) == (3, 3)
    last = (scout.folder / "history.csv").read_text().splitlines()[-1]
    assert last.startswith("3,12,")
    assert facts.dev == float(last.split(",")[-1])


def test_the_figure_on_dev_is_that_of_its_last_state_not_of_its_best(
    scored: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worsening(*given: Any) -> tuple[Student, Fit]:
        student, fit = train(*given)
        return student, Fit([entry | {"dev": -float(entry["epoch"])} for entry in fit.history], fit.seconds)

    monkeypatch.setattr(scout_code, "train", worsening)
    assert train_scout(scored, teacher, settings(), tmp_path / "out").dev == -3.0


def test_two_runs_give_the_same_bytes_wherever_they_are_written(
    scout: ScoutFolder, size: dict[str, Any], scored: Path, teacher: Path, tmp_path: Path
) -> None:
    torch.rand(7)
    train_scout(scored, teacher, settings(**size), tmp_path / "again")
    assert ScoutFolder(tmp_path / "again").hashes() == scout.hashes()
    assert files_of(tmp_path / "again") == files_of(scout.folder)


def test_another_seed_or_another_number_of_snapshots_is_another_scout_but_the_last_state_stays(
    scored: Path, teacher: Path, tmp_path: Path
) -> None:
    optimiser = STUDENT["optimiser"] | {"num_train_epochs": 1}
    changes = {"two": {"snapshots": 2}, "one": {"snapshots": 1}, "seed": {"optimiser": optimiser | {"seed": 4}}}
    for name, change in changes.items():
        train_scout(scored, teacher, settings(**({"optimiser": optimiser, "snapshots": 2} | change)), tmp_path / name)
    hashes = {name: ScoutFolder(tmp_path / name).hashes() for name in changes}
    assert hashes["one"] == hashes["two"][1:]
    assert not set(hashes["seed"]) & set(hashes["two"])


def test_variants_are_not_read_whatever_the_policy_is(scored: Path, teacher: Path, tmp_path: Path) -> None:
    for name in ("rotate", "none"):
        optimiser = STUDENT["optimiser"] | {"num_train_epochs": 1}
        train_scout(scored, teacher, settings(variants=name, snapshots=1, optimiser=optimiser), tmp_path / name)
    assert ScoutFolder(tmp_path / "rotate").hashes() == ScoutFolder(tmp_path / "none").hashes()


def test_scores_of_another_teacher_are_refused_by_the_name_of_what_differs(scored: Path, tmp_path: Path) -> None:
    other = save_teacher(tmp_path / "other", make_task(), seed=5)
    with pytest.raises(ShardMismatch, match=r"the scores in .* do not fit: teacher: \w+… wanted, \w+… found\. .*dvc repro"):
        train_scout(scored, other, settings(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_scout_from_scratch_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValidationError, match=r"to a scout from scratch; set start: teacher"):
        settings(start="scratch", variants="none")


def test_a_scout_that_would_learn_from_perturbed_inputs_alone_is_refused() -> None:
    objective = STUDENT["objective"] | {"soft": 0.0}
    with pytest.raises(ValidationError, match=r"objective\.hard or objective\.soft must be above 0"):
        settings(objective=objective)


def test_more_snapshots_than_steps_are_refused_and_what_was_there_stays(scored: Path, teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(PipelineError, match="scout tiny: 13 snapshots of 12 steps"):
        train_scout(scored, teacher, settings(snapshots=13), tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


@pytest.mark.parametrize("snapshots", [0, 1.5, None])
def test_the_number_of_snapshots_must_be_said_and_be_one_at_least(snapshots: Any) -> None:
    with pytest.raises(ValidationError, match="snapshots"):
        settings(snapshots=snapshots)


@pytest.fixture(scope="module")
def aimed(scored: Path, teacher: Path, scout: ScoutFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four variants aimed at the three snapshots in turn, or only edited."""
    folder = tmp_path_factory.mktemp("aimed")
    made = augment_settings(variants=4, recipes=[["perturb"], ["mask", "perturb"], ["mask"]])
    augment(scored, teacher, scout.folder, made, runtime_at(folder), folder / "shards")
    return folder / "shards"


def test_every_perturbed_variant_carries_the_hash_of_the_snapshot_it_is_aimed_at(aimed: Path, scout: ScoutFolder) -> None:
    manifest = Manifest.read(aimed)
    assert manifest.details["snapshots"] == 3
    one, two, three = scout.hashes()
    found = {entry.variant: entry.receipt.key.get("scout") for entry in manifest.shards}
    assert found == {1: one, 2: two, 3: None, 4: three}


def test_what_is_aimed_at_a_scout_is_another_perturbation_than_the_teachers_own(
    aimed: Path, scored: Path, teacher: Path, tmp_path: Path
) -> None:
    augment(scored, teacher, None, augment_settings(variants=1), runtime_at(tmp_path), tmp_path / "own")
    pairs = zip(Shards(aimed).rows("train", 1), Shards(tmp_path / "own").rows("train", 1), strict=True)
    assert all(bytes(one.delta or b"") != bytes(own.delta or b"") for one, own in pairs)


def test_a_student_learns_from_what_was_aimed_at_a_scout_and_its_card_says_so(
    aimed: Path, scored: Path, teacher: Path, tmp_path: Path
) -> None:
    student = StudentSettings.model_validate(STUDENT | NARROW)
    job = StudentJob("tiny", scored, aimed, teacher, student)
    facts = obtain(job, runtime_at(tmp_path), tmp_path / "student", tmp_path / "cost.json")
    card = (tmp_path / "student" / "README.md").read_text()
    assert facts["shards"] == manifest_hash(aimed)
    assert "(perturb · mask + perturb · mask); objective divergence, aimed at 3 snapshots of a scout, l2 radius 0.2" in card
    assert "with adversarial perturbations of its word embeddings" in card


def test_the_command_merges_the_tasks_scout_over_distill(scored: Path, teacher: Path, tmp_path: Path) -> None:
    own = {"layers": 1, "snapshots": 2, "optimiser": {"num_train_epochs": 1}}
    params = {"distill": STUDENT, "scout": own, "tasks": {"tiny": {"aim": "scout"}}, "runtime": world.RUNTIME}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    places = {"scores": scored, "teacher": teacher, "params": tmp_path / "params.yaml", "out": tmp_path / "out"}
    options = [text for flag, path in places.items() for text in (f"--{flag}", str(path))]
    result = CliRunner().invoke(main, ["--task", "tiny", *options])
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "out" / SCOUT_FILE).read_text())
    assert facts["settings"]["optimiser"] == STUDENT["optimiser"] | {"num_train_epochs": 1}
    assert facts["key"].items() >= lineage(teacher).items()
    assert f"{tmp_path / 'out'}: 2 snapshots, dev {facts['dev']:.4f} at the end" in result.output


def test_the_command_explains_itself_and_trains_none_for_a_task_that_asks_for_none(
    scored: Path, teacher: Path, tmp_path: Path
) -> None:
    shown = CliRunner().invoke(main, ["--help"])
    assert shown.exit_code == 0
    assert "keep snapshots along its training" in shown.output
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"tasks": {"tiny": {"aim": "teacher"}}}))
    places = {"scores": scored, "teacher": teacher, "params": tmp_path / "params.yaml", "out": tmp_path / "out"}
    options = [text for flag, path in places.items() for text in (f"--{flag}", str(path))]
    result = CliRunner().invoke(main, ["--task", "tiny", *options])
    assert (result.exit_code, result.output) == (0, f"{tmp_path / 'out'}: no scout, since the task has aim: teacher\n")
    assert [file.name for file in (tmp_path / "out").iterdir()] == [SCOUT_FILE]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_every_snapshot_of_a_regression_gives_real_values(elsewhere: bool, tmp_path: Path) -> None:
    task, folder = make_task("regression"), tmp_path / "teacher"
    model = load_classifier(save_teacher(folder, task))
    Scale(500.0, 20.0).put_into(model)
    model.save_pretrained(folder)
    score(
        save_prepared(tmp_path / "prepared", task, {"train": 60, "dev": 20, "test": 10}),
        folder, SCORE_SETTINGS, runtime_at(tmp_path), tmp_path / "scores",
    )  # fmt: skip
    told = Shards(tmp_path / "scores").rows("train", 0).matrix("teacher_logits")
    conduct = replace(NO_CHECKPOINTS, checkpoints=tmp_path / "states") if elsewhere else NO_CHECKPOINTS
    train_scout(tmp_path / "scores", folder, settings(), tmp_path / "scout", conduct)
    for number in (1, 2, 3):
        snapshot = load_classifier(ScoutFolder(tmp_path / "scout").snapshot(number))
        with torch.inference_mode():
            answers = snapshot(torch.tensor([[2, 9, 10, 3], [2, 20, 30, 3]])).logits
        assert (answers - told.mean()).abs().max() < 5 * told.std()
