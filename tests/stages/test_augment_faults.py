import ctypes
import re
import resource
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner
from transformers import AutoModelForSequenceClassification

from pipeline.shards.manifest import Manifest, manifest_hash
from pipeline.shards.reader import Shards
from pipeline.store.store import Store
from stages import augment, score
from tests.running import Stage, scored, undisturbed
from tests.stored import shard_path
from tests.world import AUGMENT, RUNTIME, make_task, runtime_at, save_prepared, save_teacher

BATCH_OF_16: dict[str, Any] = AUGMENT | {"batch_rows": 16}
MASKING: dict[str, Any] = AUGMENT | {"variants": 1, "recipes": [["mask"]]}

OUT_OF_MEMORY = """
import torch
from pipeline.augment.teacher import FrozenModel

answers = FrozenModel.logits_at

def starved(model, batch, embeddings):
    if embeddings.shape[0] * embeddings.shape[1] > 8 * 14:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    return answers(model, batch, embeddings)

FrozenModel.logits_at = starved
from stages.augment import main
main()
"""

TOGETHER = """
import os, time
from pathlib import Path
from stages.augment import main

Path(f"ready-{os.getpid()}").touch()
while len(list(Path().glob("ready-*"))) < 2:
    time.sleep(0.001)
main()
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """Scores of four partitions, and what a run gives that nobody disturbs; read only."""
    folder = tmp_path_factory.mktemp("source")
    scored(folder, teacher, rows=64, rows_per_shard=16)
    undisturbed(folder, teacher)
    return folder


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    """A folder of its own with the same scores."""
    shutil.copytree(source / "scores", tmp_path / "scores")
    return tmp_path


@pytest.fixture
def wanted(source: Path) -> Manifest:
    """Of the run that nobody disturbed."""
    return Shards(source / "undisturbed" / "shards").manifest


@pytest.fixture
def wanted_hash(source: Path) -> str:
    return manifest_hash(source / "undisturbed" / "shards")


def files_of_at_most(most: int) -> Callable[[], None]:
    """As if the disk were full once a file has so many bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def without_rights_of_root() -> None:
    """Root too may then write only where the rights say so; nothing happens to others, whom they bind already."""
    drop_from_bounding_set, override_rights = 24, 1
    ctypes.CDLL(None).prctl(drop_from_bounding_set, override_rights, 0, 0, 0)


def test_a_full_disk_is_named_with_the_shard_and_costs_that_shard_alone(
    folder: Path, teacher: Path, wanted: Manifest, wanted_hash: str
) -> None:
    most = sorted(entry.receipt.bytes for entry in wanted.shards)[-2] - 1
    number, stuck = next((number, entry) for number, entry in enumerate(wanted.shards) if entry.receipt.bytes > most)
    assert number > 0, "another shard was to be finished before"
    stage = Stage(folder, teacher)

    assert stage.run(limit=files_of_at_most(most)) == 1
    name = f"variant {stuck.variant}, partition {stuck.partition}"
    assert stage.last_line().startswith(f"Error: {name} failed: the store {stage.store} does not take it: ")
    assert stage.last_line().endswith("File too large")
    assert "Traceback" not in stage.said()
    assert stage.unfinished() == []
    assert stage.finished_shards() == number
    assert not stage.out.exists()

    assert stage.run() == 0, stage.said()
    assert f"{len(wanted.shards)} shards, {number} in the store, {len(wanted.shards) - number} to compute" in stage.said()
    assert stage.hash() == wanted_hash


def test_a_store_that_may_only_be_read_is_one_sentence(folder: Path, teacher: Path) -> None:
    store = folder / "read only"
    store.mkdir(mode=0o555)
    stage = Stage(folder, teacher, store=store)
    assert stage.run(limit=without_rights_of_root) == 1
    assert stage.last_line().startswith("Error: ")
    assert str(store) in stage.last_line()
    assert "Permission denied" in stage.last_line()
    assert "Traceback" not in stage.said()
    assert not stage.out.exists()
    assert not list(folder.rglob(".partial-*"))
    assert not list(store.iterdir())


@pytest.mark.parametrize(("place", "cause"), [("/dev/null", "Not a directory"), ("/proc", "No such file or directory")])
def test_a_store_where_none_can_be_is_one_sentence(place: str, cause: str, folder: Path, teacher: Path) -> None:
    stage = Stage(folder, teacher, store=Path(place) / "store")
    code, said = stage.run_here()
    assert code == 1
    assert said.startswith("Error: ")
    assert f"{place}/store" in said
    assert cause in said
    assert not stage.out.exists()
    assert not list(folder.rglob(".partial-*"))


def test_a_ray_that_is_not_there_is_one_sentence(folder: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
    stage = Stage(folder, teacher, workers=1)
    for address, cause in ((nobody, "[Errno 111] Connection refused"), ("nonsense", "Invalid address format: nonsense")):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert stage.run_here() == (1, f"Error: no Ray cluster answers at {address}: {cause}")
    monkeypatch.delenv("RAY_ADDRESS")
    (folder / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(folder / "file"))
    code, said = stage.run_here()
    assert code == 1
    assert said.startswith("Error: Ray does not start on this machine: [Errno 20] Not a directory: ")
    assert said.endswith("; runtime.workers: 0 does the work without it")
    assert not list(stage.store.iterdir()), "nor is a landmark left"


def flip(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-700] + bytes([whole[-700] ^ 1]) + whole[-699:])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_a_flipped_bit_and_a_cut_shard_are_found_reported_and_computed_again(
    source: Path, folder: Path, teacher: Path, wanted: Manifest, wanted_hash: str
) -> None:
    stage = Stage(folder, teacher)
    shutil.copytree(source / "undisturbed" / "store", stage.store)
    flipped, whole, shortened = wanted.shards[1], wanted.shards[2], wanted.shards[5]
    kept = Store(stage.store)
    before = shard_path(kept, whole.receipt.key).stat().st_ino
    flip(shard_path(kept, flipped.receipt.key))
    cut(shard_path(kept, shortened.receipt.key))

    assert stage.run() == 0, stage.said()
    names = ", ".join(f"variant {entry.variant}, partition {entry.partition}" for entry in (flipped, shortened))
    assert f"augment tiny: damaged in the store, computed again: {names}\n" in stage.said()
    assert f"augment tiny: {len(wanted.shards)} shards, {len(wanted.shards) - 2} in the store, 2 to compute" in stage.said()
    assert stage.hash() == wanted_hash
    Shards(stage.out)
    assert shard_path(kept, whole.receipt.key).stat().st_ino == before, "what was whole stays as it was"
    assert stage.unfinished() == []


def test_two_runs_at_once_on_one_store_both_end_well_and_leave_nothing_unfinished(
    folder: Path, teacher: Path, wanted: Manifest, wanted_hash: str
) -> None:
    (folder / "together.py").write_text(TOGETHER)
    runs = [Stage(folder, teacher, out=out) for out in ("one", "another")]
    for run in runs:
        run.start(str(folder / "together.py"))
    assert [run.end() for run in runs] == [0, 0], [run.said() for run in runs]
    assert [run.hash() for run in runs] == [wanted_hash] * 2
    for run in runs:
        assert f"{len(wanted.shards)} shards, {len(wanted.shards)} in the store" not in run.said(), "it was to come at once"
        Shards(run.out)
    assert runs[0].unfinished() == []
    assert runs[0].finished_shards() == len(wanted.shards)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A teacher that knows everything but [MASK], a word that no untouched text has."""
    folder = save_teacher(tmp_path / "broken teacher", make_task())
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[4] = torch.nan
    model.save_pretrained(folder)
    return folder


def test_a_teacher_that_answers_an_untouched_input_with_nan_fails_with_the_example(
    broken: Path, tmp_path: Path, write: Callable[[str, str], Path]
) -> None:
    prepared = save_prepared(tmp_path / "prepared", make_task(), {"train": 40, "dev": 5, "test": 5})
    rows = pq.read_table(prepared / "train.parquet")
    texts = [text + " [MASK]" if id_ == "train00021" else text for id_, text in zip(*map(column_of(rows), NAMES), strict=True)]
    pq.write_table(rows.set_column(1, "text_a", pa.array(texts)), prepared / "train.parquet")
    store, out = tmp_path / "store", tmp_path / "out"
    params = write(
        "params.yaml",
        "score: {rows_per_shard: 64, batch_rows: 8, precision: float32, hidden: []}\n"
        + yaml.safe_dump({"runtime": RUNTIME | {"store": str(store)}}),
    )
    given = {"prepared": prepared, "teacher": broken, "params": params, "out": out}
    result = CliRunner().invoke(score.main, [word for name, value in given.items() for word in (f"--{name}", str(value))])
    assert result.exit_code == 1, result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith(
        "Error: scores of train, partition 0 failed: the teacher answers the untouched input of example train00021 "
    )
    assert "a value that is not a number (1 such rows)" in last
    assert not out.exists()


NAMES = ("id", "text_a")


def column_of(rows: pa.Table) -> Callable[[str], list[str]]:
    return lambda name: rows.column(name).to_pylist()


def test_a_teacher_that_answers_a_variant_with_nan_fails_with_shard_and_example(broken: Path, tmp_path: Path) -> None:
    scored(tmp_path, broken, rows=16)
    stage = Stage(tmp_path, broken, MASKING)
    code, said = stage.run_here()
    assert code == 1
    assert said.startswith("Error: variant 1, partition 0 failed: the teacher answers variant 1 of example train000")
    assert "a value that is not a number" in said
    assert stage.finished_shards() == 0
    assert stage.unfinished() == []
    assert not stage.out.exists()


def test_running_out_of_memory_gives_smaller_batches_the_same_bytes_and_a_note(folder: Path, teacher: Path) -> None:
    wanted = undisturbed(folder, teacher, BATCH_OF_16)
    (folder / "starved.py").write_text(OUT_OF_MEMORY)
    stage = Stage(folder, teacher, BATCH_OF_16)
    assert stage.run(str(folder / "starved.py")) == 0, stage.said()
    note = r"^variant 1, partition \d+: memory ran out at \d+ rows of \d+ tokens; it goes on with 8$"
    assert re.findall(note, stage.said(), re.M)
    assert stage.said().count("memory ran out") == 1, "what fits is found once"
    assert stage.hash() == manifest_hash(wanted)


@pytest.mark.parametrize(
    ("named", "sentence"),
    [("tinny", "has no task tinny; it has other, tiny"), ("other", "scores holds the scores of tiny, not of other")],
)
def test_a_task_that_is_not_there_or_not_that_of_the_scores_is_refused(
    folder: Path, teacher: Path, named: str, sentence: str
) -> None:
    tasks = {"tasks": {"tiny": {}, "other": {}}, "augment": AUGMENT, "runtime": runtime_at(folder).model_dump()}
    (folder / "params.yaml").write_text(yaml.safe_dump(tasks), encoding="utf-8")
    options = {"task": named, "scores": folder / "scores", "teacher": teacher, "aim": teacher}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    result = CliRunner().invoke(
        augment.main, [*arguments, "--params", str(folder / "params.yaml"), "--out", str(folder / "out")]
    )
    assert (result.exit_code, sentence in result.output) == (1, True), result.output
    assert not (folder / "out").exists()
