import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from pydantic import ValidationError

from pipeline.augment.passes import augment, score
from pipeline.config.errors import PipelineError
from pipeline.distill.scout import train_scout
from pipeline.distill.settings import ScoutSettings
from pipeline.distill.student import make_student
from pipeline.models.folder import load_tokenizer, tokenizer_hash
from pipeline.models.loading import load_classifier
from pipeline.models.outputs import Scale
from pipeline.perturbation.surrogate import MAP_FILE, SCOUT_FILE, ScoutFolder
from pipeline.shards.manifest import Manifest, ShardMismatch, lineage, training_hash
from pipeline.shards.reader import Shards
from pipeline.training.callbacks import NO_CHECKPOINTS
from stages.scout import main
from tests import world
from tests.world import SCORE_SETTINGS, augment_settings, make_task, runtime_at, save_prepared, save_teacher

Folders = tuple[Path, Path]
STUDENT: dict[str, Any] = world.STUDENT | {"optimiser": world.OPTIMISER | {"num_train_epochs": 3, "batch_size": 16}}
NARROW = {"layers": 2, "hidden": 16, "heads": 2, "intermediate": 32}


def settings(optimiser: dict[str, Any] | None = None, **changes: Any) -> ScoutSettings:
    asked = {"optimiser": STUDENT["optimiser"] | (optimiser or {}), "layers": 2, "snapshots": 3}
    return ScoutSettings.model_validate(STUDENT | asked | changes)


@pytest.fixture(scope="module", params=[{"layers": 2}, NARROW], ids=["shallow", "narrow"])
def size(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(request.param)


@pytest.fixture(scope="module")
def scout(scores: Path, teacher: Path, size: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> ScoutFolder:
    out = tmp_path_factory.mktemp("scouts") / "tiny"
    train_scout(scores, teacher, settings(**size), out)
    return ScoutFolder(out)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_scout_is_its_snapshots_its_history_its_facts_and_a_map_only_where_it_is_narrower(
    scout: ScoutFolder, size: dict[str, Any], scores: Path, teacher: Path
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
    facts, last = scout.facts(), (scout.folder / "history.csv").read_text().splitlines()[-1]
    assert (facts.key, facts.scores, facts.snapshots) == (lineage(teacher), training_hash(scores), 3)
    assert last.startswith("3,12,")
    assert facts.dev == float(last.split(",")[-1]), "of its last state, not of its best"


def test_two_runs_give_the_same_bytes_wherever_they_are_written(
    scout: ScoutFolder, size: dict[str, Any], scores: Path, teacher: Path, tmp_path: Path
) -> None:
    torch.rand(7)
    train_scout(scores, teacher, settings(**size), tmp_path / "again")
    assert ScoutFolder(tmp_path / "again").hashes() == scout.hashes()
    assert files_of(tmp_path / "again") == files_of(scout.folder)


def test_another_seed_or_another_number_of_snapshots_is_another_scout_but_the_last_state_stays(
    scores: Path, teacher: Path, tmp_path: Path
) -> None:
    hashes = {}
    for name, seed, snapshots in (("two", 3, 2), ("one", 3, 1), ("seed", 4, 2)):
        changed = settings({"num_train_epochs": 1, "seed": seed}, snapshots=snapshots)
        train_scout(scores, teacher, changed, tmp_path / name)
        hashes[name] = ScoutFolder(tmp_path / name).hashes()
    assert hashes["one"] == hashes["two"][1:]
    assert not set(hashes["seed"]) & set(hashes["two"])


def test_scores_of_another_teacher_are_refused_by_the_name_of_what_differs(scores: Path, tmp_path: Path) -> None:
    other = save_teacher(tmp_path / "other", make_task(), seed=5)
    with pytest.raises(ShardMismatch, match=r"the scores in .* do not fit: teacher: \w+… wanted, \w+… found\. .*dvc repro"):
        train_scout(scores, other, settings(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_scout_from_scratch_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValidationError, match=r"to a scout from scratch; set start: teacher"):
        settings(start="scratch", variants="none")


def test_more_snapshots_than_steps_are_refused_and_what_was_there_stays(scores: Path, teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(PipelineError, match="scout tiny: 13 snapshots of 12 steps"):
        train_scout(scores, teacher, settings(snapshots=13), tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


@pytest.fixture(scope="module")
def aimed(scores: Path, teacher: Path, scout: ScoutFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four variants aimed at the three snapshots in turn, or only edited."""
    folder = tmp_path_factory.mktemp("aimed")
    made = augment_settings(variants=4, recipes=[["perturb"], ["mask", "perturb"], ["mask"]])
    augment(scores, teacher, scout.folder, made, runtime_at(folder), folder / "shards")
    return folder / "shards"


def test_every_perturbed_variant_carries_the_hash_of_the_snapshot_it_is_aimed_at(aimed: Path, scout: ScoutFolder) -> None:
    manifest = Manifest.read(aimed)
    assert manifest.details["snapshots"] == 3
    one, two, three = scout.hashes()
    found = {entry.variant: entry.receipt.key.get("scout") for entry in manifest.shards}
    assert found == {1: one, 2: two, 3: None, 4: three}


def test_what_is_aimed_at_a_scout_is_another_perturbation_than_the_teachers_own(
    aimed: Path, scores: Path, teacher: Path, tmp_path: Path
) -> None:
    augment(scores, teacher, None, augment_settings(variants=1), runtime_at(tmp_path), tmp_path / "own")
    pairs = zip(Shards(aimed).rows("train", 1), Shards(tmp_path / "own").rows("train", 1), strict=True)
    assert all(bytes(one.delta or b"") != bytes(own.delta or b"") for one, own in pairs)


def command(params: dict[str, Any], scores: Path, teacher: Path, folder: Path) -> Result:
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    places = {"scores": scores, "teacher": teacher, "params": folder / "params.yaml", "out": folder / "out"}
    options = [text for flag, path in places.items() for text in (f"--{flag}", str(path))]
    return CliRunner().invoke(main, ["--task", "tiny", *options])


def test_the_command_merges_the_tasks_scout_over_distill(scores: Path, teacher: Path, tmp_path: Path) -> None:
    own = {"layers": 1, "snapshots": 2, "optimiser": {"num_train_epochs": 1}}
    runtime = runtime_at(tmp_path).model_dump(mode="json")
    params = {"distill": STUDENT, "scout": own, "tasks": {"tiny": {"aim": "scout"}}, "runtime": runtime}
    result = command(params, scores, teacher, tmp_path)
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "out" / SCOUT_FILE).read_text())
    assert facts["settings"]["optimiser"] == STUDENT["optimiser"] | {"num_train_epochs": 1}
    assert facts["key"].items() >= lineage(teacher).items()
    assert f"2 snapshots, dev {facts['dev']:.4f}" in result.output


def test_the_command_trains_no_scout_for_a_task_that_asks_for_none(scores: Path, teacher: Path, tmp_path: Path) -> None:
    result = command({"tasks": {"tiny": {"aim": "teacher"}}}, scores, teacher, tmp_path)
    assert (result.exit_code, "no scout, since the task has aim: teacher" in result.output) == (0, True)
    assert [file.name for file in (tmp_path / "out").iterdir()] == [SCOUT_FILE]


def test_every_snapshot_of_a_regression_gives_real_values(tmp_path: Path) -> None:
    task, teacher, scores = make_task("regression"), tmp_path / "teacher", tmp_path / "scores"
    model = load_classifier(save_teacher(teacher, task))
    Scale(500.0, 20.0).put_into(model)
    model.save_pretrained(teacher)
    prepared = save_prepared(tmp_path / "prepared", task, {"train": 60, "dev": 20, "test": 10})
    score(prepared, teacher, SCORE_SETTINGS, runtime_at(tmp_path), scores)
    told = Shards(scores).rows("train", 0).matrix("teacher_logits")
    for number, options in enumerate([NO_CHECKPOINTS, replace(NO_CHECKPOINTS, checkpoints=tmp_path / "states")]):
        out = tmp_path / f"scout-{number}"
        train_scout(scores, teacher, settings(), out, options)
        for snapshot in (1, 2, 3):
            with torch.inference_mode():
                answers = load_classifier(ScoutFolder(out).snapshot(snapshot))(
                    torch.tensor([[2, 9, 10, 3], [2, 20, 30, 3]])
                ).logits
            assert (answers - told.mean()).abs().max() < 5 * told.std()
