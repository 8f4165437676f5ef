import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from pipeline.config.errors import PipelineError
from pipeline.corpus.encoding import Integers, collate
from pipeline.corpus.task import Floats, Task, measure
from pipeline.evaluation import export as folder
from pipeline.evaluation import export_check as checking
from pipeline.evaluation.export import export
from pipeline.evaluation.export_check import mixed_groups
from pipeline.evaluation.quality import EvaluationSettings, Speed
from pipeline.models.folder import model_hash
from pipeline.shards.lineage import LINEAGE_FILE
from pipeline.shards.manifest import manifest_hash
from pipeline.shards.reader import Shards
from pipeline.store.files import write_json
from tests.fake_run import read
from tests.world import MAX_LENGTH, make_shards, make_task, make_tokenizer, save_prepared, save_teacher

FLOAT_FILES = {"README.md", "config.json", "export.json", "model.onnx", "tokenizer.json", "tokenizer_config.json"}
SETTINGS = EvaluationSettings(batch_rows=8, bootstrap_resamples=100, timed_rows=20, timed_rounds=3)

Exported = tuple[Path, list[Speed]]


def save_student(path: Path, task: Task, scores: Path) -> Path:
    """One layer of a random teacher and its tokenizer, which says from which scores it has learnt."""
    save_teacher(path, task, seed=7)
    AutoModelForSequenceClassification.from_pretrained(path, num_hidden_layers=1).save_pretrained(path)
    write_json(path / LINEAGE_FILE, {"scores": manifest_hash(scores)})
    return path


@pytest.fixture(scope="module")
def scores(made: tuple[Path, Path]) -> Path:
    return made[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, scores: Path, task: Task) -> Exported:
    """An export with int8, read only, with its student beside it; and how fast it is."""
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
    """Takes the graph from the earlier export of the same student instead of writing it once more."""

    def copied(model: PreTrainedModel, token_types: bool, path: Path) -> None:
        shutil.copyfile(exported[0] / "model.onnx", path)

    monkeypatch.setattr(folder, "write_graph", copied)


def alone(student: Path, scores: Path) -> tuple[Task, Floats, Floats]:
    """The test split's labels, and what transformers itself answers to each row by itself."""
    shards, model = Shards(scores), AutoModelForSequenceClassification.from_pretrained(student).eval()
    rows = shards.rows("test", 0)
    texts = zip(rows.lists("input_ids"), rows.lists("token_type_ids"), strict=True)
    with torch.inference_mode():
        logits = [
            model(torch.tensor(ids)[None].long(), token_type_ids=torch.tensor(types)[None].long()) for ids, types in texts
        ]
    return shards.manifest.task, rows.labels(), torch.cat([one.logits for one in logits]).numpy()


def by_file(path: Path, scores: Path, groups: Sequence[Integers]) -> Floats:
    """What a file answers to the test split in these batches."""
    shards, session = Shards(scores), onnxruntime.InferenceSession(path)
    ids, types = (shards.rows("test", 0).lists(name) for name in ("input_ids", "token_type_ids"))
    found = np.empty((len(ids), shards.manifest.task.outputs), dtype=np.float32)
    for group in groups:
        batch = collate([ids[row] for row in group], [types[row] for row in group], shards.manifest.pad_token_id)
        found[group] = session.run(["logits"], {name: value.numpy() for name, value in batch.items()})[0]
    return found


def nothing_written(place: Path) -> bool:
    return not (place / "out").exists() and not list(place.rglob("*.onnx")) and not list(place.rglob(".partial*"))


def test_the_float_file_answers_as_the_student_and_what_is_said_of_it_is_true(exported: Exported, scores: Path) -> None:
    out, student = exported[0], exported[0].parent / "half"
    assert {path.name for path in out.iterdir()} == FLOAT_FILES | {"model.int8.onnx"}

    task, labels, wanted = alone(student, scores)
    found = by_file(out / "model.onnx", scores, [np.arange(len(labels))])
    np.testing.assert_allclose(found, wanted, atol=1e-5)

    facts = read(out / "export.json")
    assert facts["task"] == task.model_dump(mode="json")
    assert facts["student"] == model_hash(student)
    assert facts["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    assert facts["opset"] == next(one.version for one in onnx.load(out / "model.onnx").opset_import)
    assert (facts["rows"], facts["max_length"]) == (len(labels), MAX_LENGTH)
    assert facts["allowed"] == pytest.approx(1e-4 * np.abs(wanted).max())
    assert facts["value"] == facts["files"][0]["value"] == measure(task, labels, wanted)
    assert 0 < facts["files"][0].pop("difference") < facts["allowed"] / 10
    size = (out / "model.onnx").stat().st_size
    assert facts["files"][0] == {"file": "model.onnx", "value": facts["value"], "agreement": 1.0, "bytes": size}
    assert facts["bytes"] == (student / "model.safetensors").stat().st_size
    assert (out / "config.json").read_bytes() == (student / "config.json").read_bytes()


def test_int8_is_written_beside_it_with_its_own_figures(exported: Exported, scores: Path) -> None:
    out = exported[0]
    task, labels, wanted = alone(out.parent / "half", scores)
    found = by_file(out / "model.int8.onnx", scores, mixed_groups(len(labels)))  # what it answers depends on the batch
    _, facts = read(out / "export.json")["files"]
    assert facts["file"] == "model.int8.onnx"
    assert facts["value"] == measure(task, labels, found)
    assert facts["agreement"] == pytest.approx((found.argmax(1) == wanted.argmax(1)).mean())
    assert facts["difference"] == pytest.approx(np.abs(found - wanted).max(), rel=1e-3)
    assert facts["bytes"] == (out / "model.int8.onnx").stat().st_size < (out / "model.onnx").stat().st_size


def test_torch_and_each_file_are_timed(exported: Exported) -> None:
    speeds = exported[1]
    assert len(speeds) == 3
    assert speeds[0].latency_ms > max(speeds[1].latency_ms, speeds[2].latency_ms), "what torch does in Python comes first"


@pytest.mark.usefixtures("written_before")  # whose bytes are those of another writing: see test_graph.py
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
def test_int8_is_written_only_where_it_is_asked_for(student: Path, scores: Path, out: Path) -> None:
    facts, speeds = export(student, scores, out, SETTINGS, int8=False)
    assert {path.name for path in out.iterdir()} == FLOAT_FILES
    assert (len(facts.files), len(speeds)) == (1, 2)
    assert read(out / "export.json") == facts.model_dump(mode="json")


@pytest.mark.usefixtures("written_before")
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pair", [False, True])
def test_the_readme_shows_code_that_answers_as_transformers_does(
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
    export(student, scores, out, SETTINGS, int8=False)

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


def test_it_is_said_which_logit_is_which_and_where_to_pad(exported: Exported) -> None:
    text = (exported[0] / "README.md").read_text()
    assert "The logits are [rows, 2] in the order bad, good." in text
    assert read(exported[0] / "tokenizer_config.json")["padding_side"] == "right"


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
    with pytest.raises(PipelineError, match=r"half as ONNX answers otherwise than by torch: a logit differs by 1\.0e-02 "):
        export(student, scores, out, SETTINGS, int8=True)
    assert nothing_written(tmp_path)


@pytest.mark.usefixtures("written_before")
def test_a_failure_leaves_an_earlier_export_as_it_was(
    student: Path, scores: Path, out: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(exported[0], out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(checking, "LARGEST_DIFFERENCE", 0.0)
    with pytest.raises(PipelineError, match="answers otherwise than by torch"):
        export(student, scores, out, SETTINGS, int8=False)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(out.parent.iterdir()) == [student, out]


def test_a_student_that_is_not_there_is_refused(tmp_path: Path, scores: Path, out: Path) -> None:
    with pytest.raises(PipelineError, match=rf"the student {tmp_path / 'half'} does not exist"):
        export(tmp_path / "half", scores, out, SETTINGS, int8=False)
    assert nothing_written(tmp_path)


def test_a_student_of_other_labels_is_refused(tmp_path: Path, scores: Path, out: Path) -> None:
    other = save_teacher(tmp_path / "half", make_task(labels=("good", "bad")))
    with pytest.raises(PipelineError, match="half answers with good, bad; task tiny wants bad, good"):
        export(other, scores, out, SETTINGS, int8=False)
    assert nothing_written(tmp_path)


def test_scores_that_the_student_has_not_learnt_from_are_refused(
    tmp_path: Path, student: Path, task: Task, teacher: Path, out: Path
) -> None:
    """Those of another task with as many answers would measure it on texts that it was not made for."""
    corpus = save_prepared(tmp_path / "prepared", task, {"train": 20, "dev": 20, "test": 20}, seed=5)
    others, _ = make_shards(tmp_path / "made", corpus, teacher)
    with pytest.raises(PipelineError, match="half was trained from other scores than those in"):
        export(student, others, out, SETTINGS, int8=False)
    assert not out.exists()


def test_variants_are_not_taken_for_scores(tmp_path: Path, student: Path, out: Path, task: Task, teacher: Path) -> None:
    _, variants = make_shards(
        tmp_path / "made", save_prepared(tmp_path / "prepared", task, {"train": 20, "dev": 9, "test": 9}), teacher
    )
    with pytest.raises(PipelineError, match=f"^{variants} holds not the scores of untouched inputs, which the stage score"):
        export(student, variants, out, SETTINGS, int8=False)
    assert not out.exists()


def test_scores_of_another_tokenizer_are_refused(tmp_path: Path, student: Path, scores: Path, out: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(student)
    with pytest.raises(PipelineError, match=r"(?s)do not fit: tokenizer.*Name the scores that the student was distilled from"):
        export(student, scores, out, SETTINGS, int8=False)
    assert nothing_written(tmp_path)


def test_scores_without_test_rows_are_refused(tmp_path: Path, student: Path, out: Path, task: Task, teacher: Path) -> None:
    prepared = save_prepared(tmp_path / "prepared", task, {"train": 20, "dev": 20, "test": 0})
    scores, _ = make_shards(tmp_path / "made", prepared, teacher)
    with pytest.raises(PipelineError, match="task tiny cannot be evaluated: its test split is empty"):
        export(student, scores, out, SETTINGS, int8=False)
    assert nothing_written(tmp_path)


def test_a_folder_that_is_no_export_is_left_alone(student: Path, scores: Path) -> None:
    kept = sorted(path.name for path in student.iterdir())
    with pytest.raises(
        PipelineError,
        match=rf"{student} would be replaced as a whole, .* .it has no export.json",
    ):
        export(student, scores, student, SETTINGS, int8=False)
    assert sorted(path.name for path in student.iterdir()) == kept


def test_a_package_that_is_not_installed_is_named(
    student: Path, scores: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(PipelineError, match=r"an export needs onnxruntime; install: pip install .*'\.\[onnx\]'"):
        export(student, scores, out, SETTINGS, int8=False)
