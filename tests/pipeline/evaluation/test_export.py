import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import Integers, collate
from pipeline.corpus.task import Floats, Task, measure
from pipeline.evaluation import export as exporting
from pipeline.evaluation.export import (
    allowed_difference,
    check_difference,
    export,
    mixed_groups,
)
from pipeline.evaluation.quality import EvaluationSettings, Speed
from pipeline.models.folder import model_hash
from pipeline.shards.manifest import LINEAGE_FILE, manifest_hash
from pipeline.shards.reader import Shards
from pipeline.store.files import write_json
from tests.fake_run import read
from tests.world import MAX_LENGTH, make_shards, make_task, make_tokenizer, save_prepared, save_student, save_teacher

FLOAT_FILES = {"README.md", "config.json", "export.json", "model.onnx", "tokenizer.json", "tokenizer_config.json"}
SETTINGS = EvaluationSettings(batch_rows=8, bootstrap_resamples=100, timed_rows=20, timed_rounds=3)

Exported = tuple[Path, list[Speed]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, scores: Path, task: Task) -> Exported:
    """A read-only export with int8 beside its student, and its speeds."""
    place = tmp_path_factory.mktemp("exported")
    _, speeds = export(save_student(place / "half", task, scores), scores, place / "out", SETTINGS, int8=True)
    return place / "out", speeds


@pytest.fixture
def student(tmp_path: Path, exported: Exported) -> Path:
    return Path(shutil.copytree(exported[0].parent / "half", tmp_path / "half"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def written_before(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies the graph of the earlier export of the same student instead of writing it again."""

    def copied(model: PreTrainedModel, token_types: bool, path: Path) -> None:
        shutil.copyfile(exported[0] / "model.onnx", path)

    monkeypatch.setattr(exporting, "write_graph", copied)


def alone(student: Path, scores: Path) -> tuple[Task, Floats, Floats]:
    """The test split's labels, and transformers' logits of each row alone."""
    shards, model = Shards(scores), AutoModelForSequenceClassification.from_pretrained(student).eval()
    rows = shards.rows("test", 0)
    texts = zip(rows.lists("input_ids"), rows.lists("token_type_ids"), strict=True)
    with torch.inference_mode():
        logits = [
            model(torch.tensor(ids)[None].long(), token_type_ids=torch.tensor(types)[None].long()) for ids, types in texts
        ]
    return shards.manifest.task, rows.labels(), torch.cat([one.logits for one in logits]).numpy()


def by_file(path: Path, scores: Path, groups: Sequence[Integers]) -> Floats:
    """A file's logits on the test split in these batches."""
    shards, session = Shards(scores), onnxruntime.InferenceSession(path)
    ids, types = (shards.rows("test", 0).lists(name) for name in ("input_ids", "token_type_ids"))
    found = np.empty((len(ids), shards.manifest.task.outputs), dtype=np.float32)
    for group in groups:
        batch = collate([ids[row] for row in group], [types[row] for row in group], shards.manifest.pad_token_id)
        found[group] = session.run(["logits"], {name: value.numpy() for name, value in batch.items()})[0]
    return found


def nothing_written(place: Path) -> bool:
    return not (place / "out").exists() and not list(place.rglob("*.onnx")) and not list(place.rglob(".partial*"))


def test_the_float_file_reproduces_the_student_and_its_facts_are_true(exported: Exported, scores: Path) -> None:
    out, student = exported[0], exported[0].parent / "half"
    assert {path.name for path in out.iterdir()} == FLOAT_FILES | {"model.int8.onnx"}

    task, labels, wanted = alone(student, scores)
    found = by_file(out / "model.onnx", scores, [np.arange(len(labels))])
    np.testing.assert_allclose(found, wanted, atol=1e-5)

    facts = read(out / "export.json")
    assert facts["task"] == task.model_dump(mode="json")
    assert facts["student"] == model_hash(student)
    assert facts["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    assert (facts["rows"], facts["max_length"]) == (len(labels), MAX_LENGTH)
    assert facts["allowed"] == pytest.approx(1e-4 * np.abs(wanted).max())
    assert facts["value"] == facts["files"][0]["value"] == measure(task, labels, wanted)
    assert 0 < facts["files"][0].pop("difference") < facts["allowed"] / 10
    size = (out / "model.onnx").stat().st_size
    assert facts["files"][0] == {"file": "model.onnx", "value": facts["value"], "agreement": 1.0, "bytes": size}
    assert facts["bytes"] == (student / "model.safetensors").stat().st_size
    assert (out / "config.json").read_bytes() == (student / "config.json").read_bytes()
    assert "The logits are [rows, 2] in the order bad, good." in (out / "README.md").read_text()
    assert read(out / "tokenizer_config.json")["padding_side"] == "right"
    assert len(exported[1]) == 3, "torch and two files"


def test_the_int8_file_has_facts_of_its_own(exported: Exported, scores: Path) -> None:
    out = exported[0]
    task, labels, wanted = alone(out.parent / "half", scores)
    found = by_file(out / "model.int8.onnx", scores, mixed_groups(len(labels)))
    _, facts = read(out / "export.json")["files"]
    assert facts["file"] == "model.int8.onnx"
    assert facts["value"] == measure(task, labels, found)
    assert facts["agreement"] == pytest.approx((found.argmax(1) == wanted.argmax(1)).mean())
    assert facts["difference"] == pytest.approx(np.abs(found - wanted).max(), rel=1e-3)
    assert facts["bytes"] == (out / "model.int8.onnx").stat().st_size < (out / "model.onnx").stat().st_size


@pytest.mark.usefixtures("written_before")
def test_a_second_run_replaces_the_folder_with_the_same_bytes(
    exported: Exported, tmp_path: Path, scores: Path, student: Path
) -> None:
    first, out = exported[0], Path(shutil.copytree(exported[0], tmp_path / "out"))
    (out / "left over").write_text("of an earlier version")
    export(student, scores, out, SETTINGS, int8=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in first.iterdir()
    }


@pytest.mark.usefixtures("written_before")
@pytest.mark.parametrize(("pair", "side"), [(True, "right"), (False, "left")])
def test_the_code_in_the_readme_gives_the_logits_of_transformers(
    pair: bool, side: str, tmp_path: Path, scores: Path, student: Path, out: Path
) -> None:
    if pair:
        prepared = save_prepared(tmp_path / "prepared", make_task(pair=True), {"train": 20, "dev": 20, "test": 20})
        scores = make_shards(tmp_path / "made", prepared, save_teacher(tmp_path / "teacher", make_task(pair=True)))[0]
        write_json(student / LINEAGE_FILE, {"scores": manifest_hash(scores)})
    tokenizer = make_tokenizer()
    tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side = side
    tokenizer.save_pretrained(student)
    assert AutoTokenizer.from_pretrained(student).padding_side == side
    facts, speeds = export(student, scores, out, SETTINGS, int8=False)
    assert {path.name for path in out.iterdir()} == FLOAT_FILES
    assert (len(facts.files), len(speeds)) == (1, 2)

    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    texts = (["word1 word2 word3"], ["word4"]) if pair else (["word1 word2 word3 word4 word5", "word6"],)
    shown = '["a text"], ["its second text"]' if pair else '["a text", "another text"]'
    assert shown in code
    code = code.replace(shown, ", ".join(map(repr, texts))).replace("path/to/this/folder", str(out))
    found: dict[str, Any] = {}
    exec(code, found)

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(student), make_tokenizer()
    with torch.inference_mode():
        rows = [tokenizer(*text, return_tensors="pt") for text in zip(*texts, strict=True)]
        wanted = torch.cat([model(**row).logits for row in rows]).numpy()
    np.testing.assert_allclose(found["logits"], wanted, atol=1e-5)


def test_a_regression_is_exported_too(tmp_path: Path, out: Path) -> None:
    value = make_task("regression")
    prepared = save_prepared(tmp_path / "prepared", value, {"train": 20, "dev": 20, "test": 20})
    scores, _ = make_shards(tmp_path / "made", prepared, save_teacher(tmp_path / "teacher", value))
    facts, _ = export(save_student(tmp_path / "half", value, scores), scores, out, SETTINGS, int8=True)
    task, labels, wanted = alone(tmp_path / "half", scores)
    assert facts.files[0].value == pytest.approx(measure(task, labels, wanted), abs=1e-4)
    assert facts.files[0].agreement == pytest.approx(1)
    assert 0.5 < facts.files[1].agreement < 1


@pytest.mark.usefixtures("written_before")
def test_a_file_with_the_weights_of_another_model_is_never_published(
    tmp_path: Path, student: Path, scores: Path, out: Path, task: Task
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(student)
    with torch.no_grad():
        model.classifier.bias[1] += 0.01
    model.save_pretrained(student)
    with pytest.raises(PipelineError, match=r"half does not reproduce torch's logits: the largest difference is 1\.0e-02,"):
        export(student, scores, out, SETTINGS, int8=True)
    assert nothing_written(tmp_path)


def with_other_labels(place: Path, scores: Path, student: Path) -> Path:
    shutil.rmtree(student)
    save_teacher(student, make_task(labels=("good", "bad")))
    return scores


def with_other_scores(place: Path, scores: Path, student: Path) -> Path:
    corpus = save_prepared(place / "prepared", make_task(), {"train": 20, "dev": 20, "test": 20}, seed=5)
    return make_shards(place / "made", corpus, save_teacher(place / "teacher", make_task()))[0]


def with_another_tokenizer(place: Path, scores: Path, student: Path) -> Path:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(student)
    return scores


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (with_other_labels, "half has the labels good, bad, but task tiny has bad, good"),
        (with_other_scores, "half was trained from other scores than those in"),
        (with_another_tokenizer, r"(?s)do not fit: tokenizer.*Name the scores that the student was distilled from"),
    ],
)
def test_what_does_not_fit_the_student_is_rejected(
    wrong: Callable[[Path, Path, Path], Path], error: str, tmp_path: Path, student: Path, scores: Path, out: Path
) -> None:
    scores = wrong(tmp_path, scores, student)
    with pytest.raises(PipelineError, match=error):
        export(student, scores, out, SETTINGS, int8=False)
    assert nothing_written(tmp_path)


def test_a_folder_that_is_no_export_is_left_alone(student: Path, scores: Path) -> None:
    kept = sorted(path.name for path in student.iterdir())
    with pytest.raises(PipelineError, match=rf"{student} would be replaced as a whole, .* .it has no export.json"):
        export(student, scores, student, SETTINGS, int8=False)
    assert sorted(path.name for path in student.iterdir()) == kept


def test_a_package_that_is_not_installed_is_named(
    student: Path, scores: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(PipelineError, match=r"export needs onnxruntime; install: pip install .*'\.\[onnx\]'"):
        export(student, scores, out, SETTINGS, int8=False)


def test_the_allowed_difference_is_a_share_of_the_largest_logit() -> None:
    wanted = np.array([[1.0, -20.0], [3.0, 0.0]])
    assert allowed_difference(wanted) == pytest.approx(2e-3)
    check_difference(Path("half"), wanted + np.array([[0.0, 1.9e-3], [0.0, 0.0]]), wanted)
    for wrong in (2.1e-3, -2.1e-3, np.nan):
        with pytest.raises(PipelineError, match=r"half does not reproduce torch's logits: .* allowed are 2\.0e-03"):
            check_difference(Path("half"), wanted + np.array([[0.0, 0.0], [0.0, wrong]]), wanted)
