from pathlib import Path

import pandas as pd
import pytest

from benchmarks.accuracy import corpora
from benchmarks.accuracy.corpora import CORPORA, Case, corpus_settings, cut
from pipeline.corpus.settings import CorpusSettings
from tests.benchmarks.accuracy.sets import save_set


def texts(out: Path, split: str) -> list[str]:
    return pd.read_csv(out / f"{split}.csv")["text"].tolist()


def test_train_rows_are_drawn_by_the_seed_and_those_left_over_fill_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "TEST_ROWS", 30)
    data = save_set(tmp_path / "data", "trec", 100, 10, 20)
    assert cut(data, Case("trec", 40, 1), tmp_path / "one") == {"train": 40, "dev": 10, "test": 30}
    train, test = texts(tmp_path / "one", "train"), texts(tmp_path / "one", "test")
    assert not set(train) & set(test)
    assert sum(text.startswith("test") for text in test) == 20
    assert sum(text.startswith("train") for text in test) == 10
    cut(data, Case("trec", 40, 1), tmp_path / "again")
    cut(data, Case("trec", 40, 2), tmp_path / "other")
    assert texts(tmp_path / "again", "train") == train != texts(tmp_path / "other", "train")


def test_further_rows_without_labels_join_train_and_leave_all_else_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "TEST_ROWS", 30)
    data = save_set(tmp_path / "data", "trec", 100, 10, 20)
    cut(data, Case("trec", 40, 1), tmp_path / "plain")
    assert cut(data, Case("trec", 40, 1), tmp_path / "more", 25) == {"train": 65, "dev": 10, "test": 30}
    plain, more = (pd.read_csv(tmp_path / name / "train.csv") for name in ("plain", "more"))
    pd.testing.assert_frame_equal(plain, more[:40].astype(plain.dtypes))
    assert more["label"][40:].isna().all()
    assert not set(more["text"][40:]) & {*plain["text"], *texts(tmp_path / "more", "test")}
    assert texts(tmp_path / "plain", "test") == texts(tmp_path / "more", "test")
    assert cut(data, Case("trec", 40, 1), tmp_path / "all", 1000)["train"] == 40 + 50, "as many as there are"


def test_all_rows_leave_the_official_test_split_as_it_is(tmp_path: Path) -> None:
    data = save_set(tmp_path / "data", "cr", 30, 10, 20)
    assert cut(data, Case("cr", 0, 1), tmp_path / "out") == {"train": 30, "dev": 10, "test": 20}
    assert sorted(texts(tmp_path / "out", "test")) == sorted(f'test "{row} word{row % 60}' for row in range(20))


def test_the_pipeline_reads_what_was_cut_by_the_labels_of_the_whole_set(tmp_path: Path) -> None:
    for task, corpus in CORPORA.items():
        (tmp_path / task).mkdir()
        texts = "\t".join(corpus.columns)
        (tmp_path / task / "train.tsv").write_text(
            f"label\t{texts}\n" + "\n".join(label + "\tx" * len(corpus.columns) for label in "2313")
        )
        found = CorpusSettings.model_validate(corpus_settings(tmp_path, Case(task, 1, 1), tmp_path))
        assert (found.labels and tuple(found.labels)) == (None if corpus.kind == "regression" else ("1", "2", "3"))
