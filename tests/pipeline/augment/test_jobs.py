import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.augment import jobs as module
from pipeline.augment.candidates import read_candidates
from pipeline.augment.jobs import (
    Examples,
    candidates_job,
    cut,
    hash_of_examples,
    places,
    put_examples,
    read_inputs,
    write_soft_labels,
)
from pipeline.augment.passes import augment, soft_label
from pipeline.augment.plans import Augmentation, soft_label_jobs
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.config.errors import PipelineError
from pipeline.models.folder import ModelFolder
from pipeline.shards.manifest import Manifest, put_shards
from pipeline.shards.reader import Shards
from pipeline.shards.schema import candidates_schema
from pipeline.store.keys import key_hash
from pipeline.store.store import Store
from tests.stored import found, shard_path, shards_in
from tests.world import (
    AUGMENT_SETTINGS,
    INFERENCE,
    SPECIAL,
    WORDS,
    augment_settings,
    make_task,
    runtime_at,
    save_masked_lm,
    save_prepared,
    spoil,
)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def masked_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_masked_lm(tmp_path_factory.mktemp("masked_lm"))


def augmented(folder: Path, teacher: Path, model: Path | None = None, **changed: Any) -> Manifest:
    """Variants of ``folder / "soft_labels"`` in ``folder / "shards"``."""
    plan = Augmentation.of(folder / "soft_labels", teacher, augment_settings(**changed), masked_lm=model)
    return augment(plan, runtime_at(folder), folder / "shards")


IDS = [f"example {number}" for number in range(2000)]
ROWS = 40


def runs_of(ids: list[str], rows: int) -> list[list[str]]:
    return [[ids[position] for position in run] for run in cut(ids, rows)]


def recomputed(before: list[str], after: list[str], rows: int = ROWS) -> list[list[str]]:
    """The runs of the changed corpus that the original does not have."""
    known = {tuple(run) for run in runs_of(before, rows)}
    return [run for run in runs_of(after, rows) if tuple(run) not in known]


@given(st.lists(st.integers(0, 999).map(str), max_size=200), st.integers(1, 30))
@settings(max_examples=50)
def test_runs_cover_all_rows_in_order_and_have_about_the_wanted_length(ids: list[str], rows: int) -> None:
    runs = list(cut(ids, rows))
    assert [position for run in runs for position in run] == list(range(len(ids)))
    assert all(rows / 2 <= len(run) <= 2 * rows for run in runs[:-1])
    assert all(0 < len(run) <= 2 * rows for run in runs)


@given(st.integers(1, 1999))
@settings(max_examples=30)
def test_appended_rows_change_no_run_but_the_last(known: int) -> None:
    before, after = runs_of(IDS[:known], ROWS), runs_of(IDS, ROWS)
    assert after[: len(before) - 1] == before[:-1]


@given(st.integers(0, 1999), st.sampled_from(["removed", "inserted", "replaced"]))
@settings(max_examples=25)
def test_a_change_in_the_middle_changes_runs_nearby_only(position: int, change: str) -> None:
    new = {"removed": [], "inserted": ["new", IDS[position]], "replaced": ["new"]}[change]
    assert len(recomputed(IDS, [*IDS[:position], *new, *IDS[position + 1 :]])) <= 8


def test_a_change_costs_two_runs_of_fifty_on_average() -> None:
    assert 0.75 * ROWS < len(IDS) / len(runs_of(IDS, ROWS)) < 1.25 * ROWS
    removed = [len(recomputed(IDS, [*IDS[:position], *IDS[position + 1 :]])) for position in range(0, 2000, 80)]
    inserted = [len(recomputed(IDS, [*IDS[:position], "new", *IDS[position:]])) for position in range(0, 2000, 80)]
    assert sum(removed) / len(removed) < 2
    assert sum(inserted) / len(inserted) < 2


USUAL: Examples = {"id": ["a", "b"], "text_a": ["one", "two"], "text_b": ["three", "four"], "label": [0, None]}
CHANGES: list[Examples] = [
    {"id": ["a", "c"]}, {"text_a": ["two", "one"]}, {"text_b": ["three", "five"]}, {"label": [0, 0]},
    {"text_a": ["three", "four"], "text_b": ["one", "two"]},
]  # fmt: skip


@pytest.mark.parametrize("changed", CHANGES)
def test_the_hash_of_examples_covers_ids_texts_and_labels(changed: Examples) -> None:
    single = {name: column for name, column in USUAL.items() if name != "text_b"}
    assert len({hash_of_examples(examples) for examples in (USUAL, USUAL | changed, single)}) == 3


def corpus_of(count: int, pair: bool = False) -> Examples:
    """Different rows, some without a label."""
    texts = {"id": IDS[:count], "text_a": [f"text {number}" for number in range(count)]}
    second = {"text_b": [f"second {number}" for number in range(count)]} if pair else {}
    return texts | second | {"label": [None if number % 7 == 3 else number % 2 for number in range(count)]}


def save(folder: Path, examples: Examples, group_rows: int) -> Path:
    """A table as `prepare` writes it, in row groups of this size."""
    columns = {name: pa.array(column, pa.int32() if name == "label" else pa.string()) for name, column in examples.items()}
    pq.write_table(pa.table(columns), folder / "train.parquet", row_group_size=group_rows)
    return folder


@given(
    count=st.integers(0, 150), rows=st.integers(1, 40), read=st.integers(1, 60), group=st.integers(1, 60), pair=st.booleans()
)
@settings(max_examples=25)
def test_places_are_the_cuts_of_the_whole_list_however_the_table_is_written_and_read(
    tmp_path_factory: pytest.TempPathFactory, count: int, rows: int, read: int, group: int, pair: bool
) -> None:
    whole = corpus_of(count, pair)
    folder = save(tmp_path_factory.mktemp("corpus"), whole, group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS_A_READ", read)
        found = list(places(folder, "train", rows))
    assert [(place.start, place.stop) for place in found] == [(run.start, run.stop) for run in cut(whole["id"], rows)]
    assert [place.number for place in found] == list(range(len(found)))
    for place in found:
        expected = {name: column[place.start : place.stop] for name, column in whole.items()}
        assert place.read() == expected
        assert place.examples_hash == hash_of_examples(expected)


def test_a_place_reads_only_the_row_groups_that_hold_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    read_row_groups = pq.ParquetFile.read_row_groups

    def counted(file: pq.ParquetFile, groups: list[int], **options: Any) -> pa.Table:
        seen.append(groups)
        return read_row_groups(file, groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", counted)
    found = list(places(save(tmp_path, corpus_of(300), 16), "train", 20))
    for place in found:
        place.read()
    assert seen == [list(range(place.start // 16, (place.stop - 1) // 16 + 1)) for place in found]
    assert max(map(len, seen)) <= 4, "a table of 19 groups is never read as a whole"


WORD_TABLE = "bert.embeddings.word_embeddings.weight"


def broken(teacher: Path, folder: Path, name: str, value: float, *rows: int) -> Path:
    """The teacher with rows of one weight replaced."""
    shutil.copytree(teacher, folder)
    for row in rows:
        spoil(folder, name, row, value)
    return folder


def test_receipts_sum_up_their_rows(made: tuple[Path, Path]) -> None:
    shards = Shards(made[1])
    assert len(shards.manifest.shards) > 2
    for entry in shards.manifest.shards:
        rows, counted = shards.rows_of(entry), entry.receipt.statistics
        assert counted["divergence"] == pytest.approx(pc.mean(rows.column("divergence")).as_py())
        assert counted["flipped"] == sum(rows.column("flipped").to_pylist())
        assert counted["vanished"] == 0
        assert (entry.receipt.rows, entry.receipt.tokens) == (len(rows), rows.lengths().sum())


def test_a_receipt_of_soft_labels_counts_truncated_texts(prepared: Path, teacher: Path, store: Store) -> None:
    place = next(places(prepared, "train", 16))
    put_examples(place, store)
    examples, key = place.read(), {"max_length": 6, "examples": place.examples_hash}
    done = write_soft_labels(key, 8, ModelSet(ModelFolders(teacher), "float32"), store)
    lengths = [len(text.split()) + 2 for text in examples["text_a"]]
    assert done.result.statistics == {"truncated": sum(length > 6 for length in lengths)}
    assert (done.result.rows, done.result.tokens) == (len(lengths), sum(min(length, 6) for length in lengths))


def test_a_corpus_that_changed_since_it_was_planned_is_rejected(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    corpus = Path(shutil.copytree(prepared, tmp_path / "prepared"))
    _, (job, *_) = soft_label_jobs(corpus, ModelFolder(teacher), INFERENCE)
    table = pq.read_table(corpus / "train.parquet")
    relabelled = pa.array([1 - label for label in table["label"].to_pylist()], pa.int32())
    pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", relabelled), corpus / "train.parquet")
    with pytest.raises(PipelineError, match=r"the tables in .*prepared were changed during this run; start it again"):
        job.prepare(Store(tmp_path / "store"))


def test_rows_without_a_gradient_are_counted(prepared: Path, teacher: Path, tmp_path: Path, store: Store) -> None:
    constant = broken(teacher, tmp_path / "constant", "classifier.weight", 0.0, 0, 1)
    soft_label(prepared, constant, INFERENCE, runtime_at(tmp_path), tmp_path / "soft_labels")
    for entry in augmented(tmp_path, constant, recipes=[["perturb"], ["mask"]]).shards:
        assert entry.receipt.statistics["vanished"] == (entry.receipt.rows if entry.variant == 1 else 0)


def test_work_is_small_and_gives_the_same_bytes_when_pickled(
    soft_labels: Path, teacher: Path, store: Store, masked_lm: Path
) -> None:
    chosen = augment_settings(variants=3, recipes=[["perturb"], ["delete"], ["masked_lm"]])
    plan = Augmentation.of(soft_labels, teacher, chosen, masked_lm=masked_lm)
    models = ModelSet(plan.models, "float32")
    jobs = [job for job in plan.jobs(0.2) if job.partition == 1]
    put_shards(store, soft_labels, plan.entries())
    for needed in plan.candidates(jobs):
        needed.work(models, store)
    for job in jobs:
        sent = pickle.dumps(job.work)
        assert len(sent) < 10_000, "no rows and no models"
        here = job.work(models, store).result
        store.remove(key_hash(job.key))
        assert here == pickle.loads(sent)(models, store).result


def test_logits_that_are_not_finite_are_reported_with_shard_and_example(
    prepared: Path, teacher: Path, tmp_path: Path, store: Store
) -> None:
    broken_one = broken(teacher, tmp_path / "head", "classifier.weight", float("nan"), 0)
    sentence = (
        r"^soft labels of train, partition 0 failed: .* on the clean input of example train00000 are not finite \(\d+ such"
    )
    with pytest.raises(PipelineError, match=sentence):
        soft_label(prepared, broken_one, INFERENCE, runtime_at(tmp_path), tmp_path / "soft_labels")
    assert not (tmp_path / "soft_labels").exists()
    assert shards_in(store.folder) == []
    broken_mask = broken(teacher, tmp_path / "mask", WORD_TABLE, float("nan"), SPECIAL.index("[MASK]"))
    soft_label(prepared, broken_mask, INFERENCE, runtime_at(tmp_path), tmp_path / "soft_labels")
    with pytest.raises(PipelineError, match=r"^variant 1, partition 0 failed: .* on variant 1 of example train\d{5} are not"):
        augmented(tmp_path, broken_mask, variants=1, recipes=[["mask"]])
    assert not (tmp_path / "shards").exists()


def test_examples_without_a_label_get_variants(tmp_path: Path, teacher: Path, store: Store) -> None:
    prepared = save_prepared(tmp_path / "prepared", make_task(), {"train": 20, "dev": 4, "test": 4})
    table = pq.read_table(prepared / "train.parquet")
    labels = pa.array([None if number % 2 else 1 for number in range(20)], pa.int32())
    pq.write_table(table.set_column(2, "label", labels), prepared / "train.parquet")
    soft_label(prepared, teacher, INFERENCE, runtime_at(tmp_path), tmp_path / "soft_labels")
    augmented(tmp_path, teacher)
    assert Shards(tmp_path / "shards").rows("train", 2).column("label").to_pylist() == labels.to_pylist()


def test_candidates_are_read_back_from_the_store(soft_labels: Path, teacher: Path, store: Store, masked_lm: Path) -> None:
    shards = Shards(soft_labels)
    entry = shards.manifest.of_split("train")[1]
    put_shards(store, soft_labels, [entry])
    job = candidates_job(entry, {"content": "candidates"})
    models = ModelSet(ModelFolders(teacher, masked_lm=masked_lm, settings=AUGMENT_SETTINGS), "float32")
    receipt = job.work(models, store).result
    assert found(store, job.key) == receipt
    proposed = models.masked_lm.candidates(read_inputs(shards.rows_of(entry)))
    read = read_candidates(shard_path(store, job.key))
    assert len(read) == receipt.rows
    for here, there in zip(proposed, read, strict=True):
        for name in ("starts", "stops", "ids"):
            np.testing.assert_array_equal(getattr(here, name), getattr(there, name), strict=True)
    assert pa.ipc.open_file(shard_path(store, job.key)).schema.equals(candidates_schema())


def test_a_text_without_words_has_no_candidates(tmp_path: Path, teacher: Path, store: Store, masked_lm: Path) -> None:
    prepared = save_prepared(tmp_path / "prepared", make_task(), {"train": 3, "dev": 4, "test": 4})
    table = pq.read_table(prepared / "train.parquet")
    pq.write_table(table.set_column(1, "text_a", pa.array(["", WORDS[3], ""])), prepared / "train.parquet")
    soft_label(prepared, teacher, INFERENCE, runtime_at(tmp_path), tmp_path / "soft_labels")
    augmented(tmp_path, teacher, masked_lm, variants=1, recipes=[["masked_lm"]], masked_lm={"replace": 1.0, "candidates": 5})
    assert [len(ids) for ids in Shards(tmp_path / "shards").rows("train", 1).column("input_ids").to_pylist()] == [2, 3, 2]
