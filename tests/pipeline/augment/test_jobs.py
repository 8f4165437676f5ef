import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.augment.candidates import MaskedLMSettings, read_candidates
from pipeline.augment.passes import augment, score
from pipeline.augment.plans import Augmentation, scoring
from pipeline.augment.scoring import CandidatesJob, ScoreShard, ScoreWork
from pipeline.augment.teacher import ModelFolders, ModelSet
from pipeline.config.errors import PipelineError
from pipeline.shards.reader import Shards
from pipeline.shards.schema import candidates_schema
from pipeline.store.store import Store
from tests.stored import found, shard_path
from tests.world import (
    SCORE_SETTINGS,
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


PROPOSING = MaskedLMSettings(replace=0.4, candidates=5, batch_rows=16)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_masked_lm(tmp_path_factory.mktemp("words"))


WORD_TABLE = "bert.embeddings.word_embeddings.weight"


def broken(teacher: Path, folder: Path, name: str, value: float, *rows: int) -> Path:
    """The teacher with rows of one weight replaced."""
    shutil.copytree(teacher, folder)
    for row in rows:
        spoil(folder, name, row, value)
    return folder


def test_every_receipt_counts_what_its_rows_say(made: tuple[Path, Path]) -> None:
    shards = Shards(made[1])
    assert len(shards.manifest.shards) > 2
    for entry in shards.manifest.shards:
        rows, counted = shards.rows_of(entry), entry.receipt.statistics
        assert counted["divergence"] == pytest.approx(pc.mean(rows.column("divergence")).as_py())
        assert counted["flipped"] == sum(rows.column("flipped").to_pylist())
        assert counted["vanished"] == 0
        assert (entry.receipt.rows, entry.receipt.tokens) == (len(rows), rows.lengths().sum())


def test_a_score_receipt_counts_the_texts_that_were_cut(prepared: Path, teacher: Path, store: Store) -> None:
    _, (job, *_) = scoring(prepared, teacher, SCORE_SETTINGS)
    work = job.work()
    shorter = ScoreWork(work.examples, job.key | {"max_length": 6}, 6, 8)
    lengths = [len(text.split()) + 2 for text in work.examples.first]
    receipt = shorter.run(ModelSet(ModelFolders(teacher), "float32"), store).result
    assert receipt.statistics == {"truncated": sum(length > 6 for length in lengths)}
    assert (receipt.rows, receipt.tokens) == (len(lengths), sum(min(length, 6) for length in lengths))


def test_a_corpus_that_changed_since_shards_were_planned_is_not_scored(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    corpus = Path(shutil.copytree(prepared, tmp_path / "prepared"))
    _, (job, *_) = scoring(corpus, teacher, SCORE_SETTINGS)
    table = pq.read_table(corpus / "train.parquet")
    relabelled = pa.array([1 - label for label in table["label"].to_pylist()], pa.int32())
    pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", relabelled), corpus / "train.parquet")
    with pytest.raises(PipelineError, match=r"the tables in .*prepared were changed while this run was going; start it again"):
        job.work()


def test_rows_without_a_gradient_are_counted(prepared: Path, teacher: Path, tmp_path: Path, store: Store) -> None:
    constant = broken(teacher, tmp_path / "constant", "classifier.weight", 0.0, 0, 1)
    score(prepared, constant, SCORE_SETTINGS, runtime_at(tmp_path), tmp_path / "scores")
    settings = augment_settings(recipes=[["perturb"], ["mask"]])
    made = augment(tmp_path / "scores", constant, None, settings, runtime_at(tmp_path), tmp_path / "shards")
    for entry in made.shards:
        assert entry.receipt.statistics["vanished"] == (entry.receipt.rows if entry.variant == 1 else 0)


def test_work_that_is_sent_gives_the_same_bytes(scores: Path, teacher: Path, tmp_path: Path, store: Store, words: Path) -> None:
    settings = augment_settings(variants=3, recipes=[["perturb"], ["mix"], ["masked_lm"]], masked_lm=PROPOSING.model_dump())
    plan = Augmentation.of(scores, teacher, None, settings, words)
    models = ModelSet(ModelFolders(teacher, None, words, PROPOSING), "float32")
    jobs = [job for job in plan.jobs(0.2, store) if job.partition == 1]
    for needed in plan.candidates(jobs):
        needed.work().run(models, store)
    for job in jobs:
        here = job.work().run(models, store).result
        there = pickle.loads(pickle.dumps(job.work())).run(models, Store(tmp_path / "other")).result
        assert here == there


def test_a_teacher_that_answers_nan_is_named_with_shard_and_example(
    prepared: Path, teacher: Path, tmp_path: Path, store: Store
) -> None:
    broken_one = broken(teacher, tmp_path / "head", "classifier.weight", float("nan"), 0)
    sentence = r"^scores of train, partition 0 failed: .* example train00000 with a value that is not a number \(\d+"
    with pytest.raises(PipelineError, match=sentence):
        score(prepared, broken_one, SCORE_SETTINGS, runtime_at(tmp_path), tmp_path / "scores")
    assert not (tmp_path / "scores").exists()
    assert list(store.folder.iterdir()) == []
    broken_mask = broken(teacher, tmp_path / "mask", WORD_TABLE, float("nan"), SPECIAL.index("[MASK]"))
    score(prepared, broken_mask, SCORE_SETTINGS, runtime_at(tmp_path), tmp_path / "scores")
    masked = augment_settings(variants=1, recipes=[["mask"]])
    with pytest.raises(PipelineError, match=r"^variant 1, partition 0 failed: .* variant 1 of example train\d{5} with a value"):
        augment(tmp_path / "scores", broken_mask, None, masked, runtime_at(tmp_path), tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


def test_examples_without_a_label_go_through(tmp_path: Path, teacher: Path, store: Store) -> None:
    prepared = save_prepared(tmp_path / "prepared", make_task(), {"train": 20, "dev": 4, "test": 4})
    table = pq.read_table(prepared / "train.parquet")
    labels = pa.array([None if number % 2 else 1 for number in range(20)], pa.int32())
    pq.write_table(table.set_column(2, "label", labels), prepared / "train.parquet")
    score(prepared, teacher, SCORE_SETTINGS, runtime_at(tmp_path), tmp_path / "scores")
    augment(tmp_path / "scores", teacher, None, augment_settings(), runtime_at(tmp_path), tmp_path / "shards")
    assert Shards(tmp_path / "shards").rows("train", 2).column("label").to_pylist() == labels.to_pylist()


def test_candidates_come_back_from_the_store_as_they_were_found(scores: Path, teacher: Path, store: Store, words: Path) -> None:
    shards = Shards(scores)
    job = CandidatesJob(ScoreShard(shards, shards.manifest.of_split("train")[1]), {"content": "candidates"})
    models = ModelSet(ModelFolders(teacher, None, words, PROPOSING), "float32")
    receipt = job.work().run(models, store).result
    assert found(store, job.key) == receipt
    inputs = job.scores.inputs()
    proposed, read = models.masked_lm.candidates(inputs), read_candidates(shard_path(store, job.key))
    assert len(read) == receipt.rows
    for here, there in zip(proposed, read, strict=True):
        for name in ("starts", "stops", "ids"):
            np.testing.assert_array_equal(getattr(here, name), getattr(there, name), strict=True)
    assert pa.ipc.open_file(shard_path(store, job.key)).schema.equals(candidates_schema())


def test_a_text_without_words_has_no_candidates(tmp_path: Path, teacher: Path, store: Store, words: Path) -> None:
    prepared = save_prepared(tmp_path / "prepared", make_task(), {"train": 3, "dev": 4, "test": 4})
    table = pq.read_table(prepared / "train.parquet")
    pq.write_table(table.set_column(1, "text_a", pa.array(["", WORDS[3], ""])), prepared / "train.parquet")
    score(prepared, teacher, SCORE_SETTINGS, runtime_at(tmp_path), tmp_path / "scores")
    asked = augment_settings(variants=1, recipes=[["masked_lm"]], masked_lm=PROPOSING.model_dump() | {"replace": 1.0})
    augment(tmp_path / "scores", teacher, None, asked, runtime_at(tmp_path), tmp_path / "shards", words)
    assert [len(ids) for ids in Shards(tmp_path / "shards").rows("train", 1).column("input_ids").to_pylist()] == [2, 3, 2]
