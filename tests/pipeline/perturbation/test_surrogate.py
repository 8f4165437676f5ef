import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.errors import PipelineError
from pipeline.perturbation import surrogate as scouting
from pipeline.perturbation.surrogate import MAP_FILE, SCOUT_FILE, ScoutFacts, ScoutFolder, aims_of
from pipeline.store.files import write_json
from pipeline.training.callbacks import snapshot_steps
from tests.world import make_task, save_teacher

LINEAR = torch.arange(12.0).reshape(4, 3)


def facts(snapshots: int = 2) -> ScoutFacts:
    return ScoutFacts(
        key={"teacher": "ab" * 32, "labels": ["bad", "good"]},
        scores="cd" * 32,
        snapshots=snapshots,
        start={"start": "teacher", "layers": [0, 2]},
        dev=0.75,
        settings={"layers": 2},
    )


@pytest.fixture
def scout(tmp_path: Path) -> ScoutFolder:
    """Two snapshots with weights of their own, and a map."""
    made = ScoutFolder(tmp_path / "scout")
    for number in (1, 2):
        save_teacher(made.snapshot(number), make_task(), seed=number)
    made.save(facts(), LINEAR)
    return made


@given(snapshots=st.integers(1, 50), more=st.integers(0, 2000))
def test_snapshots_are_taken_evenly_at_different_steps_and_the_last_at_the_end(snapshots: int, more: int) -> None:
    total = snapshots + more
    steps = [0, *snapshot_steps(total, snapshots)]
    gaps = [after - before for before, after in itertools.pairwise(steps)]
    assert (len(gaps), steps[-1]) == (snapshots, total)
    assert min(gaps) >= 1, "two snapshots of one step, or one before the first step"
    assert max(gaps) - min(gaps) <= 1
    assert list(snapshot_steps(total, 0)) == []


@pytest.mark.parametrize(
    ("snapshots", "wanted"), [(0, [None] * 6), (1, [1, None, 1, 1, None, 1]), (3, [1, None, 2, 3, None, 1])]
)
def test_perturbed_variants_are_aimed_at_snapshots_in_turn_others_at_none(snapshots: int, wanted: list[int | None]) -> None:
    assert aims_of([True, False, True, True, False, True], snapshots) == wanted


@pytest.mark.parametrize("linear", [LINEAR, LINEAR.T, None], ids=["map", "view", "shared space"])
def test_what_is_saved_is_what_is_read(scout: ScoutFolder, linear: torch.Tensor | None) -> None:
    (scout.folder / MAP_FILE).unlink()
    scout.save(facts(1), linear)
    found = scout.map()
    assert (scout.facts(), len(scout.hashes())) == (facts(1), 1)
    assert (None if found is None else found.tolist()) == (None if linear is None else linear.tolist())


def test_the_facts_are_written_last(scout: ScoutFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    (scout.folder / SCOUT_FILE).unlink()
    (scout.folder / MAP_FILE).unlink()
    there: list[str] = []

    def write(path: Path, value: Any) -> None:
        there.extend(file.name for file in scout.folder.iterdir())
        write_json(path, value)

    monkeypatch.setattr(scouting, "write_json", write)
    scout.save(facts(), LINEAR)
    assert sorted(there) == [MAP_FILE, "snapshot-1", "snapshot-2"]


def test_a_folder_without_facts_is_no_scout_and_the_way_out_is_told(scout: ScoutFolder) -> None:
    (scout.folder / SCOUT_FILE).unlink()
    with pytest.raises(PipelineError, match=r"scout is no scout: it has no scout\.json; .* run the stage scout$"):
        scout.hashes()


@pytest.mark.parametrize(
    ("content", "named"), [("{", ""), ("{}", "key"), (None, "snapshots"), (json.dumps({"spare": 1}), "key")]
)
def test_damaged_facts_are_named_and_not_converted(scout: ScoutFolder, content: str | None, named: str) -> None:
    path = scout.folder / SCOUT_FILE
    path.write_text(content or json.dumps(facts().model_dump() | {"snapshots": "2"}))
    with pytest.raises(PipelineError, match=rf"scout\.json is damaged: .*{named}.*; make it again with dvc repro$"):
        scout.facts()


def test_snapshots_are_named_by_weights_and_map_and_not_by_place(scout: ScoutFolder, tmp_path: Path) -> None:
    one, two = scout.hashes()
    assert one != two
    assert ScoutFolder(Path(shutil.copytree(scout.folder, tmp_path / "moved"))).hashes() == (one, two)
    save_teacher(scout.snapshot(2), make_task(), seed=1)
    assert scout.hashes() == (one, one)
    safetensors.torch.save_file({"map": LINEAR + 1}, scout.folder / MAP_FILE)
    assert one not in scout.hashes(), "the same weights behind another map move otherwise"
    (scout.folder / MAP_FILE).unlink()
    assert one not in scout.hashes()
