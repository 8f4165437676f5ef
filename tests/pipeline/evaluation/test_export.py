import logging
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from pipeline.config.errors import PipelineError
from pipeline.config.settings import EvaluationSettings
from pipeline.corpus.encoding import Batch, Integers
from pipeline.corpus.task import Floats, Task, measure
from pipeline.evaluation import export as exporting
from pipeline.evaluation.export import OPSET, check_difference, export, mixed_groups, open_graph, write_graph, write_int8
from pipeline.evaluation.quality import Speed
from pipeline.models.folder import ModelFolder
from pipeline.models.forward import logits_from_ids
from pipeline.shards.batches import inputs_at
from pipeline.shards.manifest import LINEAGE_FILE, manifest_hash
from pipeline.shards.reader import Shards
from pipeline.store.files import write_json
from tests.architectures import CONFIGURATIONS, WITH_TOKEN_TYPES, of_type, rows_of
from tests.fake_run import read
from tests.world import MAX_LENGTH, make_shards, make_task, make_tokenizer, save_prepared, save_student, save_teacher

FLOAT_FILES = {"README.md", "config.json", "export.json", "model.onnx", "tokenizer.json", "tokenizer_config.json"}
SETTINGS = EvaluationSettings(bootstrap_resamples=100, timed_rows=20)

Exported = tuple[Path, list[Speed]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, soft_labels: Path, task: Task) -> Exported:
    """A read-only export with int8 beside its student, and its speeds."""
    place = tmp_path_factory.mktemp("exported")
    _, speeds = export(save_student(place / "half", task, soft_labels), soft_labels, place / "out", SETTINGS, int8=True)
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


def alone(student: Path, soft_labels: Path) -> tuple[Task, Floats, Floats]:
    """The test split's labels, and transformers' logits of each row alone."""
    shards, model = Shards(soft_labels), AutoModelForSequenceClassification.from_pretrained(student).eval()
    rows = shards.rows("test", 0)
    with torch.inference_mode():
        logits = [
            model(torch.tensor(row.input_ids)[None].long(), token_type_ids=torch.tensor(row.token_type_ids)[None].long())
            for row in rows
        ]
    return shards.manifest.task, rows.labels(), torch.cat([one.logits for one in logits]).numpy()


def by_file(path: Path, soft_labels: Path, groups: Sequence[Integers]) -> Floats:
    """A file's logits on the test split in these batches."""
    shards, session = Shards(soft_labels), onnxruntime.InferenceSession(path)
    rows = shards.rows("test", 0)
    found = np.empty((len(rows), shards.manifest.task.outputs), dtype=np.float32)
    for group in groups:
        batch = inputs_at(rows, group, shards.manifest.pad_token_id)
        found[group] = session.run(["logits"], {name: value.numpy() for name, value in batch.items()})[0]
    return found


def nothing_written(place: Path) -> bool:
    return not (place / "out").exists() and not list(place.rglob("*.onnx")) and not list(place.rglob(".partial*"))


def test_the_float_file_reproduces_the_student_and_its_facts_are_true(exported: Exported, soft_labels: Path) -> None:
    out, student = exported[0], exported[0].parent / "half"
    assert {path.name for path in out.iterdir()} == FLOAT_FILES | {"model.int8.onnx"}

    task, labels, wanted = alone(student, soft_labels)
    found = by_file(out / "model.onnx", soft_labels, [np.arange(len(labels))])
    np.testing.assert_allclose(found, wanted, atol=1e-5)

    facts = read(out / "export.json")
    assert facts["task"] == task.model_dump(mode="json")
    assert facts["student"] == ModelFolder(student).hash
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


def test_the_int8_file_has_facts_of_its_own(exported: Exported, soft_labels: Path) -> None:
    out = exported[0]
    task, labels, wanted = alone(out.parent / "half", soft_labels)
    found = by_file(out / "model.int8.onnx", soft_labels, mixed_groups(len(labels)))
    _, facts = read(out / "export.json")["files"]
    assert facts["file"] == "model.int8.onnx"
    assert facts["value"] == measure(task, labels, found)
    assert facts["agreement"] == pytest.approx((found.argmax(1) == wanted.argmax(1)).mean())
    assert facts["difference"] == pytest.approx(np.abs(found - wanted).max(), rel=1e-3)
    assert facts["bytes"] == (out / "model.int8.onnx").stat().st_size < (out / "model.onnx").stat().st_size


@pytest.mark.usefixtures("written_before")
def test_a_second_run_replaces_the_folder_with_the_same_bytes(
    exported: Exported, tmp_path: Path, soft_labels: Path, student: Path
) -> None:
    first, out = exported[0], Path(shutil.copytree(exported[0], tmp_path / "out"))
    (out / "left over").write_text("of an earlier version")
    export(student, soft_labels, out, SETTINGS, int8=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in first.iterdir()
    }


@pytest.mark.usefixtures("written_before")
@pytest.mark.parametrize(("pair", "side"), [(True, "right"), (False, "left")])
def test_the_code_in_the_readme_gives_the_logits_of_transformers(
    pair: bool, side: str, tmp_path: Path, soft_labels: Path, student: Path, out: Path
) -> None:
    if pair:
        prepared = save_prepared(tmp_path / "prepared", make_task(pair=True), {"train": 20, "dev": 20, "test": 20})
        soft_labels = make_shards(tmp_path / "made", prepared, save_teacher(tmp_path / "teacher", make_task(pair=True)))[0]
        write_json(student / LINEAGE_FILE, {"soft_labels": manifest_hash(soft_labels)})
    tokenizer = make_tokenizer()
    tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side = side
    tokenizer.save_pretrained(student)
    assert AutoTokenizer.from_pretrained(student).padding_side == side
    facts, speeds = export(student, soft_labels, out, SETTINGS, int8=False)
    assert {path.name for path in out.iterdir()} == FLOAT_FILES
    assert (len(facts["files"]), len(speeds)) == (1, 2)

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
    soft_labels, _ = make_shards(tmp_path / "made", prepared, save_teacher(tmp_path / "teacher", value))
    facts, _ = export(save_student(tmp_path / "half", value, soft_labels), soft_labels, out, SETTINGS, int8=True)
    task, labels, wanted = alone(tmp_path / "half", soft_labels)
    assert facts["files"][0]["value"] == pytest.approx(measure(task, labels, wanted), abs=1e-4)
    assert facts["files"][0]["agreement"] == pytest.approx(1)
    assert 0.5 < facts["files"][1]["agreement"] < 1


@pytest.mark.usefixtures("written_before")
def test_a_file_with_the_weights_of_another_model_is_never_published(
    tmp_path: Path, student: Path, soft_labels: Path, out: Path, task: Task
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(student)
    with torch.no_grad():
        model.classifier.bias[1] += 0.01
    model.save_pretrained(student)
    with pytest.raises(PipelineError, match=r"half does not reproduce torch's logits: the largest difference is 1\.0e-02,"):
        export(student, soft_labels, out, SETTINGS, int8=True)
    assert nothing_written(tmp_path)


def with_other_labels(place: Path, soft_labels: Path, student: Path) -> Path:
    shutil.rmtree(student)
    save_teacher(student, make_task(labels=("good", "bad")))
    return soft_labels


def with_other_soft_labels(place: Path, soft_labels: Path, student: Path) -> Path:
    corpus = save_prepared(place / "prepared", make_task(), {"train": 20, "dev": 20, "test": 20}, seed=5)
    return make_shards(place / "made", corpus, save_teacher(place / "teacher", make_task()))[0]


def with_another_tokenizer(place: Path, soft_labels: Path, student: Path) -> Path:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(student)
    return soft_labels


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (with_other_labels, "half has the labels good, bad, but task tiny has bad, good"),
        (with_other_soft_labels, "half was trained from other soft labels than "),
        (with_another_tokenizer, r"(?s)do not fit: tokenizer.*Name the soft labels that the student was distilled from"),
    ],
)
def test_what_does_not_fit_the_student_is_rejected(
    wrong: Callable[[Path, Path, Path], Path], error: str, tmp_path: Path, student: Path, soft_labels: Path, out: Path
) -> None:
    soft_labels = wrong(tmp_path, soft_labels, student)
    with pytest.raises(PipelineError, match=error):
        export(student, soft_labels, out, SETTINGS, int8=False)
    assert nothing_written(tmp_path)


def test_a_folder_that_is_no_export_is_left_alone(student: Path, soft_labels: Path) -> None:
    kept = sorted(path.name for path in student.iterdir())
    with pytest.raises(PipelineError, match=rf"{student} would be replaced as a whole, .* .it has no export.json"):
        export(student, soft_labels, student, SETTINGS, int8=False)
    assert sorted(path.name for path in student.iterdir()) == kept


def test_a_package_that_is_not_installed_is_named(
    student: Path, soft_labels: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(PipelineError, match=r"export needs onnxruntime; install: pip install .*'\.\[onnx\]'"):
        export(student, soft_labels, out, SETTINGS, int8=False)


def test_the_allowed_difference_is_a_share_of_the_largest_logit() -> None:
    wanted = np.array([[1.0, -20.0], [3.0, 0.0]])
    assert check_difference(Path("half"), wanted + np.array([[0.0, 1.9e-3], [0.0, 0.0]]), wanted) == pytest.approx(2e-3)
    for wrong in (2.1e-3, -2.1e-3, np.nan):
        with pytest.raises(PipelineError, match=r"half does not reproduce torch's logits: .* allowed are 2\.0e-03"):
            check_difference(Path("half"), wanted + np.array([[0.0, 0.0], [0.0, wrong]]), wanted)


ONE_LAYER: dict[str, Any] = {"num_hidden_layers": 1}
ONE_SLIDING = ONE_LAYER | {"layer_types": ["sliding_attention"]}
TRIED: dict[str, dict[str, Any]] = {
    "bert": {},
    "deberta-v2, version 3 with convolution": ONE_LAYER,
    "gemma2": ONE_SLIDING,
    "gemma3_text": ONE_SLIDING | {"sliding_window": 10},
    "gpt2": ONE_LAYER,
    "llama": ONE_LAYER,
    "mobilebert": ONE_LAYER,
    "modernbert": {"local_attention": 20},
    "mpnet": ONE_LAYER,
    "roberta": ONE_LAYER,
    "xlnet": ONE_LAYER,
}
"""Changed settings of each tested type; most have one layer, which is enough to cover their operators.

In Gemma 3 and ModernBERT the attention window is wider than the exporter's example rows; in Gemma 2 it is narrower.
"""
TWINS = {
    "albert": ["bert", "gpt2"],
    "deberta-v2": ["deberta-v2, version 3 with convolution"],
    "deberta-v2, version 3": ["deberta-v2, version 3 with convolution"],
    "distilbert": ["bert", "mobilebert"],
    "electra": ["bert"],
    "gemma": ["gemma3_text"],
    "qwen2": ["llama"],
    "qwen3": ["llama", "gemma3_text"],
    "xlm-roberta": ["roberta"],
}
"""Types that are not tested because their graphs use only the operators of these tested types."""
BATCHES = ((11, 3, 7, 2), (1,), (5, 5), (18, 1, 2, 13, 6))


def tried(kind: str) -> PreTrainedModel:
    return of_type(kind, **TRIED[kind])


def save_graph(folder: Path, kind: str) -> Path:
    write_graph(tried(kind), kind in WITH_TOKEN_TYPES, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def graph_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of a type, written once; read only."""
    return cache(lambda kind: save_graph(tmp_path_factory.mktemp("exported"), kind))


def each_alone(model: PreTrainedModel, batch: Batch) -> Floats:
    """Transformers' logits of each row alone, without padding or mask."""
    found = []
    for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
        own = {name: value[row : row + 1, :length] for name, value in batch.items() if name != "attention_mask"}
        found.append(model(**own).logits)
    return torch.cat(found).numpy()


def test_every_supported_type_or_its_twin_is_tested() -> None:
    assert sorted([*TRIED, *TWINS]) == sorted(CONFIGURATIONS)
    assert {other for others in TWINS.values() for other in others} <= set(TRIED)


@pytest.mark.parametrize("kind", TRIED)
def test_the_file_gives_each_row_of_any_batch_the_logits_that_transformers_gives_it_alone(
    kind: str, graph_of: Callable[[str], Path]
) -> None:
    model, predict = tried(kind), open_graph(graph_of(kind))
    for lengths in BATCHES:
        batch = rows_of(kind, lengths)
        wanted = each_alone(model, batch)
        assert len(lengths) == 1 or np.ptp(wanted, axis=0).max() > 1e-2, "rows must have different outputs"
        np.testing.assert_allclose(predict(batch), wanted, atol=1e-5, rtol=1e-5, err_msg=str(lengths))

    batch = rows_of(kind, BATCHES[0])
    padding = batch["attention_mask"] == 0
    elsewhere = batch | {"input_ids": batch["input_ids"].masked_fill(padding, 7)}
    np.testing.assert_allclose(predict(elsewhere), predict(batch), atol=1e-5, err_msg="ids below the mask are not read")


@pytest.mark.parametrize(("kind", "names"), [("bert", ("token_type_ids",)), ("roberta", ())])
def test_inputs_are_whole_numbers_of_any_rows_and_tokens_and_the_output_is_float32(
    kind: str, names: tuple[str, ...], graph_of: Callable[[str], Path]
) -> None:
    model, session = onnx.load(graph_of(kind)), onnxruntime.InferenceSession(graph_of(kind))
    onnx.checker.check_model(model)
    inputs = [(one.name, one.type, one.shape) for one in session.get_inputs()]
    assert inputs == [(name, "tensor(int64)", ["rows", "tokens"]) for name in ("input_ids", "attention_mask", *names)]
    assert [(one.name, one.type, one.shape) for one in session.get_outputs()] == [("logits", "tensor(float)", ["rows", 3])]
    assert [(one.domain, one.version) for one in model.opset_import] == [("", OPSET)]


def test_a_second_file_has_the_same_bytes_and_writing_it_is_silent_and_leaves_warnings_and_logging_as_they_were(
    graph_of: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    first = graph_of("bert").read_bytes()
    capfd.readouterr()
    caplog.clear()
    assert save_graph(tmp_path, "bert").read_bytes() == first
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    logging.getLogger("another").warning("still heard")
    assert "still heard" in caplog.text
    with pytest.warns(UserWarning, match="still seen"):
        warnings.warn("still seen", UserWarning, stacklevel=1)


def test_a_type_that_the_exporter_cannot_take_is_rejected_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def by_content(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
        return batch["input_ids"] if batch["input_ids"].sum() > 3 else batch["attention_mask"]

    monkeypatch.setattr(exporting, "logits_from_ids", by_content)
    with pytest.raises(PipelineError) as caught:
        save_graph(tmp_path, "roberta")
    start = "torch cannot export a 'roberta' model to ONNX: "
    assert str(caught.value).startswith(start)
    assert len(str(caught.value)) > len(start)
    assert not {"\n", "\x1b"} & set(str(caught.value))
    assert not list(tmp_path.iterdir())


def test_what_onnxruntime_cannot_run_is_a_sentence(
    graph_of: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    predict, batch = open_graph(graph_of("bert")), rows_of("bert")
    capfd.readouterr()
    with pytest.raises(PipelineError, match=r"onnxruntime cannot run model\.onnx: .*token_type_ids"):
        predict({name: value for name, value in batch.items() if name != "token_type_ids"})
    with pytest.raises(PipelineError, match=r"onnxruntime cannot run model\.onnx: .*out of"):
        predict(batch | {"input_ids": batch["input_ids"] + 1000})
    path = tmp_path / "model.onnx"
    path.write_bytes(b"nothing that it knows")
    with pytest.raises(PipelineError, match=r"onnxruntime cannot run model\.onnx: "):
        open_graph(path)
    with pytest.raises(PipelineError, match=r"onnxruntime cannot write model\.int8\.onnx: "):
        write_int8(path, tmp_path / "model.int8.onnx")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_int8_keeps_every_matrix_in_a_byte_with_a_scale_a_column_and_has_almost_the_same_logits(
    kind: str, graph_of: Callable[[str], Path], tmp_path: Path
) -> None:
    model, path = tried(kind), tmp_path / "model.int8.onnx"
    write_int8(graph_of(kind), path)
    kept = onnx.load(path).graph.initializer
    matrices = [one for one in kept if one.data_type == onnx.TensorProto.INT8 and len(one.dims) == 2]
    assert sum(np.prod(one.dims) for one in matrices) > 0.7 * sum(weight.numel() for weight in model.parameters())
    scales = {one.name.removesuffix("_scale"): one.dims for one in kept if one.name.endswith("_scale")}
    inner = [one for one in matrices if "embed" not in one.name and "wte" not in one.name]
    assert all(list(scales[one.name.removesuffix("_quantized")]) == [one.dims[1]] for one in inner if one.dims[0] > 4)

    batch = rows_of(kind)
    wanted, found = logits_from_ids(model, batch).numpy(), open_graph(path)(batch)
    difference = np.abs(found - wanted).max()
    assert 1e-5 < difference < 0.2 * np.abs(wanted).max()
