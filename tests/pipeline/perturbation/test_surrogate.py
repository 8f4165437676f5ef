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
from pipeline.perturbation.surrogate import MAP_FILE, SURROGATE_FILE, SurrogateFacts, SurrogateFolder, aims_of
from pipeline.store.files import write_json
from pipeline.training.callbacks import checkpoint_steps
from tests.world import make_task, save_teacher

LINEAR = torch.arange(12.0).reshape(4, 3)


def facts(checkpoints: int = 2) -> SurrogateFacts:
    return SurrogateFacts(
        key={"teacher": "ab" * 32, "labels": ["bad", "good"]},
        soft_labels="cd" * 32,
        checkpoints=checkpoints,
        start={"start": "teacher", "layers": [0, 2]},
        dev=0.75,
        settings={"layers": 2},
    )


@pytest.fixture
def surrogate(tmp_path: Path) -> SurrogateFolder:
    """Two checkpoints with weights of their own, and a map."""
    made = SurrogateFolder(tmp_path / "surrogate")
    for number in (1, 2):
        save_teacher(made.checkpoint(number), make_task(), seed=number)
    made.save(facts(), LINEAR)
    return made


@given(checkpoints=st.integers(1, 50), more=st.integers(0, 2000))
def test_checkpoints_are_taken_evenly_at_different_steps_and_the_last_at_the_end(checkpoints: int, more: int) -> None:
    total = checkpoints + more
    steps = [0, *checkpoint_steps(total, checkpoints)]
    gaps = [after - before for before, after in itertools.pairwise(steps)]
    assert (len(gaps), steps[-1]) == (checkpoints, total)
    assert min(gaps) >= 1, "two checkpoints of one step, or one before the first step"
    assert max(gaps) - min(gaps) <= 1
    assert list(checkpoint_steps(total, 0)) == []


@pytest.mark.parametrize(
    ("snapshots", "wanted"), [(0, [None] * 6), (1, [1, None, 1, 1, None, 1]), (3, [1, None, 2, 3, None, 1])]
)
def test_perturbed_variants_are_aimed_at_checkpoints_in_turn_others_at_none(checkpoints: int, wanted: list[int | None]) -> None:
    assert aims_of([True, False, True, True, False, True], checkpoints) == wanted


@pytest.mark.parametrize("linear", [LINEAR, LINEAR.T, None], ids=["map", "view", "shared space"])
def test_what_is_saved_is_what_is_read(surrogate: SurrogateFolder, linear: torch.Tensor | None) -> None:
    (surrogate.folder / MAP_FILE).unlink()
    surrogate.save(facts(1), linear)
    found = surrogate.map()
    assert (surrogate.facts(), len(surrogate.hashes())) == (facts(1), 1)
    assert (None if found is None else found.tolist()) == (None if linear is None else linear.tolist())


def test_the_facts_are_written_last(surrogate: SurrogateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    (surrogate.folder / SURROGATE_FILE).unlink()
    (surrogate.folder / MAP_FILE).unlink()
    there: list[str] = []

    def write(path: Path, value: Any) -> None:
        there.extend(file.name for file in surrogate.folder.iterdir())
        write_json(path, value)

    monkeypatch.setattr(scouting, "write_json", write)
    surrogate.save(facts(), LINEAR)
    assert sorted(there) == [MAP_FILE, "checkpoint-1", "checkpoint-2"]


def test_a_folder_without_facts_is_no_surrogate_and_the_way_out_is_told(surrogate: SurrogateFolder) -> None:
    (surrogate.folder / SURROGATE_FILE).unlink()
    with pytest.raises(
        PipelineError, match=r"surrogate is no surrogate: it has no surrogate\.json; .* run the stage surrogate$"
    ):
        surrogate.hashes()


@pytest.mark.parametrize(
    ("content", "named"), [("{", ""), ("{}", "key"), (None, "snapshots"), (json.dumps({"spare": 1}), "key")]
)
def test_damaged_facts_are_named_and_not_converted(surrogate: SurrogateFolder, content: str | None, named: str) -> None:
    path = surrogate.folder / SURROGATE_FILE
    path.write_text(content or json.dumps(facts().model_dump() | {"checkpoints": "2"}))
    with pytest.raises(PipelineError, match=rf"surrogate\.json is damaged: .*{named}.*; make it again with dvc repro$"):
        surrogate.facts()


def test_checkpoints_are_named_by_weights_and_map_and_not_by_place(surrogate: SurrogateFolder, tmp_path: Path) -> None:
    one, two = surrogate.hashes()
    assert one != two
    assert SurrogateFolder(Path(shutil.copytree(surrogate.folder, tmp_path / "moved"))).hashes() == (one, two)
    save_teacher(surrogate.checkpoint(2), make_task(), seed=1)
    assert surrogate.hashes() == (one, one)
    safetensors.torch.save_file({"map": LINEAR + 1}, surrogate.folder / MAP_FILE)
    assert one not in surrogate.hashes(), "the same weights behind another map move otherwise"
    (surrogate.folder / MAP_FILE).unlink()
    assert one not in surrogate.hashes()
