from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import params as config
from pipeline.config.errors import Faults
from pipeline.corpus.settings import CorpusSettings


class Section(config.Settings):
    corpus: CorpusSettings


def complaint(tmp_path: Path, **changes: Any) -> str:
    """What a person reads about a section of params.yaml; a key changed to ``...`` is left out."""
    section = {"files": "x.csv", "text": "text", "label": "label", "duplicates": "refuse"} | changes
    section = {key: value for key, value in section.items() if value is not ...}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({"tasks": {"movies": {"corpus": section}}}), encoding="utf-8")
    with pytest.raises(Faults) as caught:
        config.load(path, Section, corpus="tasks.movies.corpus")
    return "\n".join(caught.value.faults)


def settings(**keys: Any) -> CorpusSettings:
    return CorpusSettings.model_validate({"text": "text", "label": "label", "duplicates": "refuse"} | keys)


def test_settings_read_lists_and_one_or_many_files() -> None:
    one = settings(files="x.csv", labels=[0, " 1"], dev=0.1, test=0.1)
    assert (one.files, one.text, one.labels) == ({"train": "x.csv"}, ("text",), {"0": "0", "1": "1"})
    assert settings(files="x.csv", labels={0: "bad", " 1": "good"}).labels == {"0": "bad", "1": "good"}
    assert settings(files={"train": "x.csv", "dev": "y.csv"}).files == {"train": "x.csv", "dev": "y.csv"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"files": ...}, ".hub: name your table as files, or a hub set as hub"),
        (
            {"files": ["a.csv", "b.csv"]},
            ".files: one path, or one for each split: {train: …, dev: …, test: …}, not ['a.csv', 'b.csv']",
        ),
        ({"text": 5}, ".text: the name of a column, or a list of two, not 5"),
        (
            {"labels": "a,b"},
            ".labels: a list of names in the order of the logits, or a mapping of what the table has to them, not 'a,b'",
        ),
        (
            {"labels": {"0:bad": None}},
            ".labels: put a space after the colon; YAML reads 0:bad as one word, not {'0:bad': None}",
        ),
        ({"hub": "imdb"}, ".hub: exactly one of files and hub must be given, not 'imdb'"),
        ({"files": {"dev": "x.csv"}}, ".files: a train split must be named, not {'dev': 'x.csv'}"),
        ({"files": {"train": "x", "validation": "y"}}, "files.validation: input should be 'train', 'dev' or 'test'"),
        ({"config": "sst2"}, ".config: this belongs to hub and must be left out with files, not 'sst2'"),
        ({"revision": "main"}, ".revision: this belongs to hub and must be left out with files, not 'main'"),
        (
            {"splits": {"train": "t"}},
            ".splits: this belongs to hub and must be left out with files, not {'train': 't'}",
        ),
        ({"dev": 1.0}, ".dev: input should be less than 1, not 1.0"),
        ({"test": 0}, ".test: input should be greater than 0, not 0"),
        ({"dev": 0.5, "test": 0.5}, ".test: dev (0.5) and test together must be less than 1, not 0.5"),
        ({"text": []}, ".text: one text column or two different ones must be named, not []"),
        ({"text": ["a", "a"]}, ".text: one text column or two different ones must be named, not ['a', 'a']"),
        ({"text": ["a", "b", "c"]}, "one text column or two different ones must be named, not ['a', 'b', 'c']"),
        ({"labels": ["a"]}, ".labels: at least two different label names must be listed, not ['a']"),
        ({"labels": ["a", "a", "b"]}, ".labels: each label name must be listed once, not ['a', 'a', 'b']"),
        (
            {"labels": {"a": "x", "b": "x"}},
            ".labels: at least two different label names must be listed, not {'a': 'x', 'b': 'x'}",
        ),
        ({"labels": {True: "x"}}, "YAML reads an unquoted true or false as a truth value, not {True: 'x'}"),
        ({"labels": [False, True]}, "YAML reads an unquoted true or false as a truth value, not [False, True]"),
        (
            {"labels": [{0: "bad"}, {1: "good"}]},
            ".labels: an entry of the list is no label name; a mapping is written without dashes, {0: bad, 1: good}, "
            "not [{0: 'bad'}, {1: 'good'}]",
        ),
        ({"rows": {"train": 0}}, ".rows.train: input should be greater than 0, not 0"),
        ({"duplicates": ...}, ".duplicates is missing"),
        ({"duplicates": "keep"}, ".duplicates: input should be 'refuse' or 'drop', not 'keep'"),
        ({"lable": "label"}, ".lable is not a setting known here (value: 'label')"),
    ],
)
def test_faults_of_the_settings_are_sentences(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    said = complaint(tmp_path, **changes)
    assert said.count("\n") == 0
    assert said.startswith("tasks.movies.corpus.")
    assert said.endswith(sentence)
