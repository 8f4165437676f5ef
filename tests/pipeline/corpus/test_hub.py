from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from pipeline.corpus.hub import open_hub
from pipeline.corpus.tables import ErrorList, Table


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What datasets prepares is written beside the test, and no hub is asked."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read_parts(folder: Path, *wanted: str, config: str | None = None) -> dict[str, list[Table]]:
    errors = ErrorList()
    tables = {split: reader(wanted, errors) for split, reader in open_hub(str(folder), config, None, errors).items()}
    assert errors.lines() == []
    return tables


def read(folder: Path, *wanted: str, config: str | None = None) -> dict[str, Table]:
    """The only table of each split."""
    return {split: table for split, (table,) in read_parts(folder, *wanted, config=config).items()}


def errors_of(place: Path, *wanted: str, config: str | None = None) -> list[str]:
    errors = ErrorList()
    for reader in open_hub(str(place), config, None, errors).values():
        assert reader(wanted, errors) == []
    return [line.replace(str(place), place.name) for line in errors.lines()]


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A folder in hub layout: two configurations, one of them with declared label names."""
    folder = tmp_path / "hub"
    label = datasets.ClassLabel(names=["entailment", "neutral"])
    features = datasets.Features({"premise": datasets.Value("string"), "label": label})
    (folder / "mnli").mkdir(parents=True)
    for split, labels in {"train": [0, 1], "validation_matched": [1, 0], "test": [-1, -1]}.items():
        rows = {"premise": ["p 1", "p 2"], "label": labels}
        datasets.Dataset.from_dict(rows, features).to_parquet(folder / "mnli" / f"{split}-0.parquet")
    written(folder / "plain.csv", "text,label\nfine,1\n")
    splits = "".join(
        f"  - split: {split}\n    path: mnli/{split}-*.parquet\n" for split in ("train", "validation_matched", "test")
    )
    configs = f"- config_name: mnli\n  data_files:\n{splits}- config_name: plain\n  data_files: plain.csv\n"
    written(folder / "README.md", f"---\nconfigs:\n{configs}---\n")
    return folder


def test_a_hub_set_gives_its_splits_with_label_names_and_secret_labels_as_none(hub: Path) -> None:
    tables = read(hub, "premise", "label", config="mnli")
    assert {split: table.columns["label"] for split, table in tables.items()} == {
        "train": ["entailment", "neutral"],
        "validation_matched": ["neutral", "entailment"],
        "test": [None, None],
    }
    assert tables["train"].class_names == {"label": ("entailment", "neutral")}
    assert tables["test"].name == str(hub / "mnli/test-0.parquet")
    assert list(tables["test"].numbers) == [1, 2]


def test_a_set_that_cannot_be_loaded_is_one_error_with_a_way_out(hub: Path, tmp_path: Path) -> None:
    (line,) = errors_of(hub, "premise", config="mnil")
    assert line.startswith("hub: datasets cannot load it (BuilderConfig 'mnil' not found. Available: ['mnli', 'plain'])")
    assert line.endswith("; name its tables under files instead")
    (tmp_path / "empty").mkdir()
    assert errors_of(tmp_path / "empty")[0].startswith("empty: datasets cannot load it (")
    (line,) = errors_of(written(tmp_path / "x.csv", "text\n"))
    assert line.startswith("x.csv: the path is a file, ")


def test_a_split_of_several_files_is_a_table_for_each(tmp_path: Path) -> None:
    for part in (0, 1):
        written(tmp_path / f"ds/data/train-0000{part}-of-00002.csv", f'label,text\nNA,text {part}\n\n007," last"\n')
    for part, table in enumerate(read_parts(tmp_path / "ds", "text", "label")["train"]):
        assert table.columns == {"text": [f"text {part}", " last"], "label": ["NA", "007"]}
        assert (Path(table.name).name[:11], table.numbers) == (f"train-0000{part}", [2, 4])
    written(tmp_path / "ds/data/train-00001-of-00002.csv", b"PK\x03\x04")
    (line,) = errors_of(tmp_path / "ds", "text")
    assert line.startswith("ds/data/train-00001-of-00002.csv: the file is an Excel file")


@pytest.mark.parametrize(("content", "values"), [("0\n1\n-1\n", ["neg", "pos", None]), ("neg\n1.0\n5\n", ["neg", "pos", 5])])
def test_class_names_that_a_readme_declares_name_the_indices_of_a_csv(tmp_path: Path, content: str, values: list[Any]) -> None:
    written(tmp_path / "ds/train.csv", "label\n" + content)
    names = "".join(f"        '{place}': {name}\n" for place, name in enumerate(("neg", "pos")))
    feature = f"  - name: label\n    dtype:\n      class_label:\n        names:\n{names.replace('        ', ' ' * 10)}"
    written(tmp_path / "ds/README.md", f"---\ndataset_info:\n  features:\n{feature}---\n")
    table = read(tmp_path / "ds", "label")["train"]
    assert (table.columns["label"], table.class_names) == (values, {"label": ("neg", "pos")})


@pytest.mark.parametrize(
    ("save", "splits"),
    [
        (lambda data, folder: data.save_to_disk(folder), ["train"]),
        (lambda data, folder: datasets.DatasetDict(train=data, validation=data).save_to_disk(folder), ["train", "validation"]),
    ],
)
def test_what_save_to_disk_wrote_is_read(tmp_path: Path, save: Callable[[Any, Path], None], splits: list[str]) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    data = datasets.Dataset.from_dict({"text": ["NA", "b", "c"], "label": [0, 1, -1]}, features)
    save(data.select([2, 1, 0]), tmp_path / "saved")
    tables = read(tmp_path / "saved", "text", "label", "absent")
    assert list(tables) == splits
    assert tables["train"].columns == {"text": ["c", "b", "NA"], "label": [None, "pos", "neg"]}
    assert tables["train"].class_names == {"label": ("neg", "pos")}
    (line,) = errors_of(tmp_path / "saved", config="some")
    assert line == "saved: a folder written by save_to_disk has no some; leave config and revision out"


def test_csv_of_the_hub_is_fetched_and_read_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = written(tmp_path / "snapshot/train.csv", "text,label\nN/A,None\n")
    config = datasets.load_dataset_builder("csv", data_files=str(fetched)).config
    config.data_files = {"train": ["hf://datasets/org/set@main/train.csv"]}
    builder = SimpleNamespace(name="csv", config=config, info=SimpleNamespace(features=None))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: builder)
    monkeypatch.setattr(datasets.DownloadManager, "download", lambda _, files: [str(fetched)] * len(files))
    assert read(Path("org/set"), "text", "label")["train"].columns == {"text": ["N/A"], "label": ["None"]}
    monkeypatch.setattr(datasets.DownloadManager, "download", lambda *_: 1 / 0)
    assert errors_of(Path("org/set"), "text") == ["set: datasets cannot download it (division by zero)"]
