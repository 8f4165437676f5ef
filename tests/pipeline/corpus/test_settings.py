import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import params as config
from pipeline.config.errors import Faults
from pipeline.corpus.settings import CorpusSettings


class Section(config.Settings):
    corpus: CorpusSettings


def errors_of(tmp_path: Path, **changes: Any) -> list[str]:
    """The errors of a section of params.yaml; a key changed to ``...`` is left out."""
    section = {"files": "x.csv", "text": "text", "label": "label", "duplicates": "error"} | changes
    section = {key: value for key, value in section.items() if value is not ...}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({"tasks": {"movies": {"corpus": section}}}), encoding="utf-8")
    with pytest.raises(Faults) as caught:
        config.load(path, Section, corpus="tasks.movies.corpus")
    return list(caught.value.faults)


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
        ({"files": ...}, "hub", "name your table as files, or a hub set as hub"),
        ({"hub": "imdb"}, "hub", "exactly one of files and hub"),
        ({"files": ["a.csv", "b.csv"]}, "files", "one path, or one for each split: {train: …"),
        ({"files": {"train": "x", "validation": "y"}}, "files.validation", "should be 'train', 'dev' or 'test'"),
        ({"splits": {"train": "t"}}, "splits", "belongs to hub"),
        ({"dev": 0.5, "test": 0.5}, "test", "dev (0.5) and test together must be less than 1"),
        ({"text": 5}, "text", "a list of two, not 5"),
        ({"text": ["a", "a"]}, "text", "one text column or two different ones"),
        ({"text": ["label", "b"]}, "label", "must not be one of the text columns"),
        ({"labels": "a,b"}, "labels", "a list of names in the order of the logits, or a mapping"),
        ({"labels": {"0:bad": None}}, "labels", "put a space after the colon; YAML reads 0:bad as one word"),
        ({"labels": {"a": "x", "b": "x"}}, "labels", "at least two different"),
        ({"labels": ["a", "a", "b"]}, "labels", "listed once"),
        ({"labels": [False, True]}, "labels", "YAML reads an unquoted true or false as a truth value"),
        ({"labels": [{0: "bad"}, {1: "good"}]}, "labels", "written without dashes, {0: bad, 1: good}"),
    ],
)
def test_an_error_of_the_settings_names_its_place_and_cause(
    tmp_path: Path, changes: dict[str, Any], place: str, cause: str
) -> None:
    (line,) = errors_of(tmp_path, **changes)
    assert re.match(rf"tasks\.movies\.corpus\.{re.escape(place)}\b", line)
    assert cause in line
