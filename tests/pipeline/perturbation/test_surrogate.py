import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pipeline.config.errors import PipelineError
from pipeline.perturbation import surrogate as module
from pipeline.perturbation.surrogate import (
    MAP_FILE,
    SURROGATE_FILE,
    SurrogateFacts,
    SurrogateFolder,
    checkpoints_followed,
    hashes_in,
    surrogates_in,
)
from pipeline.store.files import write_json
from tests.world import make_task, save_teacher

LINEAR = torch.arange(12.0).reshape(4, 3)


def facts(checkpoints: int = 2) -> SurrogateFacts:
    return SurrogateFacts(
        key={"teacher": "ab" * 32, "labels": ["bad", "good"]},
        soft_labels="cd" * 32,
        checkpoints=checkpoints,
        start={"initial_weights": "teacher", "layers": [0, 2]},
        dev=0.75,
        settings={"num_hidden_layers": 2},
    )


@pytest.fixture
def surrogate(tmp_path: Path) -> SurrogateFolder:
    """Two checkpoints with different weights, and a map."""
    made = SurrogateFolder(tmp_path / "surrogate")
    for number in (1, 2):
        save_teacher(made.checkpoint(number), make_task(), seed=number)
    made.save(facts(), LINEAR)
    return made


@pytest.mark.parametrize(
    ("checkpoints", "wanted"), [(0, [None] * 6), (1, [1, None, 1, 1, None, 1]), (3, [1, None, 2, 3, None, 1])]
)
def test_perturbed_variants_follow_the_checkpoints_in_turn(checkpoints: int, wanted: list[int | None]) -> None:
    assert checkpoints_followed([True, False, True, True, False, True], checkpoints) == wanted


@pytest.mark.parametrize("linear", [LINEAR, LINEAR.T, None], ids=["map", "not contiguous", "shared space"])
def test_a_saved_surrogate_is_read_back(surrogate: SurrogateFolder, linear: torch.Tensor | None) -> None:
    (surrogate.folder / MAP_FILE).unlink()
    surrogate.save(facts(1), linear)
    found = surrogate.map()
    assert (surrogate.facts(), len(surrogate.hashes())) == (facts(1), 1)
    assert (None if found is None else found.tolist()) == (None if linear is None else linear.tolist())


def test_surrogates_are_found_by_number_and_each_decides_the_hash_of_a_checkpoint(
    surrogate: SurrogateFolder, tmp_path: Path
) -> None:
    several = tmp_path / "several"
    for number in (1, 2, 10):
        shutil.copytree(surrogate.folder, several / str(number))
    assert [one.folder.name for one in surrogates_in(several)] == ["1", "2", "10"]
    before = hashes_in(several)
    assert len(set(before)) == 2
    save_teacher(surrogates_in(several)[2].checkpoint(2), make_task(), seed=3)
    after = hashes_in(several)
    assert (after[0], after[1] != before[1]) == (before[0], True)
    with pytest.raises(PipelineError, match=r"surrogate holds no surrogate; the stage surrogate trains them$"):
        surrogates_in(surrogate.folder)


def test_the_facts_are_written_last(surrogate: SurrogateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    (surrogate.folder / SURROGATE_FILE).unlink()
    (surrogate.folder / MAP_FILE).unlink()
    there: list[str] = []

    def write(path: Path, value: Any) -> None:
        there.extend(file.name for file in surrogate.folder.iterdir())
        write_json(path, value)

    monkeypatch.setattr(module, "write_json", write)
    surrogate.save(facts(), LINEAR)
    assert sorted(there) == [MAP_FILE, "surrogate-1", "surrogate-2"]


def test_a_folder_without_facts_is_rejected_with_the_stage_that_writes_them(surrogate: SurrogateFolder) -> None:
    (surrogate.folder / SURROGATE_FILE).unlink()
    with pytest.raises(PipelineError, match=r"surrogate has no surrogate\.json; the stage surrogate writes it$"):
        surrogate.hashes()


@pytest.mark.parametrize(
    ("content", "named"), [("{", "it is not JSON"), ("{}", "key"), (None, "checkpoints"), (json.dumps({"spare": 1}), "key")]
)
def test_damaged_facts_are_rejected_by_name(surrogate: SurrogateFolder, content: str | None, named: str) -> None:
    path = surrogate.folder / SURROGATE_FILE
    path.write_text(content or json.dumps(facts().model_dump() | {"checkpoints": "2"}))
    with pytest.raises(PipelineError, match=rf"surrogate\.json is damaged: .*{named}.*; make it again with dvc repro$"):
        surrogate.facts()


def test_the_hash_of_a_checkpoint_covers_weights_and_map_and_not_its_place(surrogate: SurrogateFolder, tmp_path: Path) -> None:
    one, two = surrogate.hashes()
    assert one != two
    assert SurrogateFolder(Path(shutil.copytree(surrogate.folder, tmp_path / "moved"))).hashes() == (one, two)
    save_teacher(surrogate.checkpoint(2), make_task(), seed=1)
    assert surrogate.hashes() == (one, one)
    safetensors.torch.save_file({"map": LINEAR + 1}, surrogate.folder / MAP_FILE)
    assert one not in surrogate.hashes()
    (surrogate.folder / MAP_FILE).unlink()
    assert one not in surrogate.hashes()


def test_the_map_commutes_with_adding_delta_and_a_shared_space_needs_none() -> None:
    generator = torch.Generator().manual_seed(1)
    words, delta, linear = (torch.randn(shape, generator=generator) for shape in ((5, 16), (3, 5, 16), (16, 4)))
    assert module.mapped(delta, None) is delta
    torch.testing.assert_close(words @ linear + module.mapped(delta, linear), (words + delta) @ linear)
