from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import params as config
from pipeline.config.corpus import CorpusSettings, TaskSettings
from pipeline.config.errors import PipelineErrors


class Section(config.Settings):
    corpus: CorpusSettings


def errors_of(tmp_path: Path, **changes: Any) -> list[str]:
    """The errors of a section of params.yaml; a key changed to ``...`` is left out."""
    section = {"files": "x.csv", "text": "text", "label": "label", "duplicates": "error"} | changes
    section = {key: value for key, value in section.items() if value is not ...}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({"tasks": {"movies": {"corpus": section}}}), encoding="utf-8")
    with pytest.raises(PipelineErrors) as caught:
        config.load(path, Section, corpus="tasks.movies.corpus")
    return list(caught.value.errors)


def settings(**keys: Any) -> CorpusSettings:
    return CorpusSettings.model_validate({"text": "text", "label": "label", "duplicates": "error"} | keys)


def test_settings_read_lists_and_one_or_many_files() -> None:
    one = settings(files="x.csv", labels=[0, " 1"], dev=0.1, test=0.1)
    assert (one.files, one.text, one.labels) == ({"train": "x.csv"}, ("text",), {"0": "0", "1": "1"})
    assert settings(files="x.csv", labels={0: "bad", " 1": "good"}).labels == {"0": "bad", "1": "good"}
    assert settings(files={"train": "x.csv", "dev": "y.csv"}).files == {"train": "x.csv", "dev": "y.csv"}


@pytest.mark.parametrize(
    ("changes", "place", "cause"),
    [
        ({"files": ...}, "", "exactly one of files (your tables) and hub"),
        ({"hub": "imdb"}, "", "exactly one of files (your tables) and hub"),
        ({"files": ["a.csv", "b.csv"]}, "files", "one path, or one for each split: {train: …"),
        ({"files": {"train": "x", "validation": "y"}}, "files.validation", "should be 'train', 'dev' or 'test'"),
        ({"splits": {"train": "t"}}, "", "splits belong to hub"),
        ({"dev": 0.5, "test": 0.5}, "", "dev and test together must be less than 1"),
        ({"text": 5}, "text", "a list of two different ones, not 5"),
        ({"text": ["a", "a"]}, "text", "a list of two different ones"),
        ({"text": ["label", "b"]}, "", "must not be one of the text columns"),
        ({"labels": "a,b"}, "labels", "a list of names in the order of the logits, or a mapping"),
        ({"labels": {"0:bad": None}}, "labels", "put spaces after colons"),
        ({"labels": {"a": "x", "b": "x"}}, "labels", "at least two different"),
        ({"labels": ["a", "a", "b"]}, "labels", "listed once"),
        ({"labels": [False, True]}, "labels", "quote true and false"),
        ({"labels": [{0: "bad"}, {1: "good"}]}, "labels", "write mappings without dashes"),
    ],
)
def test_an_error_of_the_settings_names_its_place_and_cause(
    tmp_path: Path, changes: dict[str, Any], place: str, cause: str
) -> None:
    (line,) = errors_of(tmp_path, **changes)
    assert line.startswith(f"tasks.movies.corpus{f'.{place}' if place else ': '}")
    assert cause in line


def test_all_contradictions_of_a_corpus_and_of_a_task_are_named_together(tmp_path: Path) -> None:
    (line,) = errors_of(tmp_path, hub="imdb", splits={"train": "t"}, text="label", dev=0.5, test=0.5)
    for cause in ("exactly one of files", "belong to hub", "one of the text columns", "less than 1"):
        assert cause in line
    teacher = {"model": "org/model", "fine_tune": True, "max_length": 16}
    corpus = {"files": "x.csv", "text": "text", "label": "label", "duplicates": "error", "labels": ["bad", "good"]}
    with pytest.raises(ValueError, match=r"has the metrics pearson, spearman; corpus.labels: .*; leave them out"):
        TaskSettings.model_validate({"kind": "regression", "metric": "f1", "corpus": corpus, "teacher": teacher})
