import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast, pipeline

from pipeline.config.errors import PipelineError
from pipeline.corpus.task import Task
from pipeline.training.teacher import TeacherSettings, teach
from tests.architectures import of_type
from tests.world import (
    MAX_LENGTH,
    make_task,
    make_tokenizer,
    rewrite,
    save_prepared,
    save_teacher,
    spoil,
    student_settings,
)

OPTIMISER = student_settings({"num_train_epochs": 6, "batch_size": 16, "learning_rate": 2e-3, "seed": 1}).optimiser
SHORT = OPTIMISER.model_copy(update={"num_train_epochs": 1})
LEARNABLE = ("word1", "word2")
"""The word that decides a text's label, by label."""


def settings_of(model: Path, fine_tune: bool = True, max_length: int = 16) -> TeacherSettings:
    return TeacherSettings(model=str(model), fine_tune=fine_tune, max_length=max_length)


def with_labels(prepared: Path, out: Path, change: Callable[[list[float]], list[float | None]], *splits: str) -> Path:
    """A copy of a corpus with other labels in some splits."""
    shutil.copytree(prepared, out)
    for split in splits:
        table = pq.read_table(out / f"{split}.parquet")
        column = table.schema.get_field_index("label")
        labels = pa.array(change(table["label"].to_pylist()), table.schema.field(column).type)
        pq.write_table(table.set_column(column, "label", labels), out / f"{split}.parquet")
    return out


def save_learnable(folder: Path, task: Task) -> Path:
    """A corpus whose label is decided by one word."""
    save_prepared(folder, task, {"train": 160, "dev": 60, "test": 4}, seed=5)
    for split in ("train", "dev"):
        columns = pq.read_table(folder / f"{split}.parquet").to_pydict()
        deciding = [int(label > 0) for label in columns["label"]]
        texts = [f"{LEARNABLE[label]} {number % 7 * 'word30 '}" for number, label in enumerate(deciding)]
        kind = pa.float32() if task.kind == "regression" else pa.int32()
        table = pa.table({"id": columns["id"], "text_a": texts, "label": pa.array(deciding, kind)})
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


def right_answers(folder: Path, prepared: Path) -> float:
    """Share of the dev texts that transformers alone answers rightly, each text by itself."""
    columns = pq.read_table(prepared / "dev.parquet").to_pydict()
    texts = zip(columns["text_a"], columns.get("text_b", columns["text_a"]), strict=True)
    answers = answers_of(folder, [pair if "text_b" in columns else pair[:1] for pair in texts])
    return float((answers.argmax(-1) == torch.tensor(columns["label"])).double().mean())


def answers_of(folder: Path, texts: list[tuple[str, ...]]) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return torch.cat([model(**tokenizer(*text, truncation=True, return_tensors="pt")).logits for text in texts])


@pytest.fixture(scope="module")
def learnable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_learnable(tmp_path_factory.mktemp("corpus") / "prepared", make_task())


def test_a_fine_tuned_teacher_has_learned_the_task_and_works_with_transformers_alone(
    learnable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained = save_teacher(tmp_path / "pretrained", make_task(labels=("x", "y", "z")))
    value = teach(learnable, settings_of(pretrained), OPTIMISER, tmp_path / "out")
    assert "note:" not in capsys.readouterr().out
    assert value == pytest.approx(right_answers(tmp_path / "out", learnable))
    assert value > 0.9
    assert Task.read(tmp_path / "out") == make_task()
    named = pipeline("text-classification", str(tmp_path / "out"))(["word1 word30", "word2 word30"])
    assert [answer["label"] for answer in named] == ["bad", "good"]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 16
    with (tmp_path / "out/history.csv").open() as file:
        history = list(csv.DictReader(file))
    assert [row["epoch"] for row in history] == [str(epoch) for epoch in range(1, 7)]
    assert max(float(row["dev"]) for row in history) == value


@pytest.mark.parametrize("kind", ["gpt2", "xlnet"])
def test_a_teacher_that_reads_the_last_position_answers_batches_as_texts_alone(
    kind: str, learnable: Path, tmp_path: Path
) -> None:
    """Hardly trained, so that a text answered otherwise beside longer ones would be counted otherwise."""
    pretrained = tmp_path / "pretrained"
    of_type(kind, vocab_size=65, pad_token_id=None).save_pretrained(pretrained)
    backend = make_tokenizer().backend_tokenizer
    backend.post_processor = TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    names = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]", model_input_names=names).save_pretrained(pretrained)
    hardly = SHORT.model_copy(update={"learning_rate": 1e-9})
    value = teach(learnable, settings_of(pretrained), hardly, tmp_path / "tuned")
    assert value == pytest.approx(right_answers(tmp_path / "tuned", learnable))
    assert AutoTokenizer.from_pretrained(tmp_path / "tuned").pad_token == "[SEP]"
    assert AutoConfig.from_pretrained(tmp_path / "tuned").pad_token_id == 3
    assert teach(learnable, settings_of(tmp_path / "tuned", fine_tune=False), SHORT, tmp_path / "adopted") == value


def test_rows_without_a_label_are_not_learned_from(tmp_path: Path, prepared: Path, teacher: Path) -> None:
    holes = with_labels(
        prepared, tmp_path / "holes", lambda labels: [label if row % 3 else None for row, label in enumerate(labels)], "train"
    )
    shorter = Path(shutil.copytree(holes, tmp_path / "shorter"))
    table = pq.read_table(holes / "train.parquet")
    pq.write_table(table.filter(table["label"].is_valid()), shorter / "train.parquet")
    for corpus in (holes, shorter):
        teach(corpus, settings_of(teacher), SHORT, tmp_path / "out" / corpus.name)
    learned = [(tmp_path / "out" / name / "model.safetensors").read_bytes() for name in ("holes", "shorter")]
    assert learned[0] == learned[1] != (teacher / "model.safetensors").read_bytes()


def test_a_corpus_without_labels_needs_a_classifier_to_adopt(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    corpus = with_labels(prepared, tmp_path / "prepared", lambda labels: [None] * len(labels), "train")
    with pytest.raises(PipelineError, match=r"no training example of tiny has a label.*set teacher.fine_tune: false"):
        teach(corpus, settings_of(teacher), SHORT, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    teach(corpus, settings_of(teacher, fine_tune=False), SHORT, tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").exists()


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_teacher_that_gives_one_answer_to_all_is_noted(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = make_task(kind)
    prepared = save_prepared(tmp_path / "prepared", task, {"train": 30, "dev": 30, "test": 4})
    model = spoil(save_teacher(tmp_path / "model", task), "classifier.weight", slice(None), 0.0)
    teach(prepared, settings_of(model, fine_tune=False), SHORT, tmp_path / "out")
    said = capsys.readouterr().out
    assert f"note: teacher of tiny: {task.metric} " in said
    assert "learning_rate" not in said, "it was adopted"


@pytest.mark.parametrize("pair", [False, True])
def test_an_adopted_teacher_keeps_its_weights_and_its_answers(pair: bool, teacher: Path, tmp_path: Path) -> None:
    prepared = save_prepared(tmp_path / "prepared", make_task(pair=pair), {"train": 4, "dev": 40, "test": 4})
    value = teach(prepared, settings_of(teacher, fine_tune=False), SHORT, tmp_path / "out")
    kept, given = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (tmp_path / "out", teacher))
    assert kept.keys() == given.keys()
    assert all(torch.equal(kept[name], weight) for name, weight in given.items())
    assert value == pytest.approx(right_answers(tmp_path / "out", prepared))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 16


def without_longest(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = int(1e30)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("labels", "change", "max_length", "sentence"),
    [
        (("good", "bad"), None, 16, r"model answers \['good', 'bad'\], but the labels of tiny are \['bad', 'good'\]; "),
        (("bad", "good", "fine"), {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}, 16, "classifier"),
        (("bad", "good"), None, MAX_LENGTH + 1, "^max_length is 25, but .*model takes at most 24 tokens$"),
        (("bad", "good"), without_longest, MAX_LENGTH + 1, "^max_length is 25, but .*model takes at most 24 tokens$"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_not_adopted(
    labels: tuple[str, ...], change: object, max_length: int, sentence: str, prepared: Path, tmp_path: Path
) -> None:
    model = save_teacher(tmp_path / "model", make_task(labels=labels))
    if callable(change):
        change(model)
    elif isinstance(change, dict):
        rewrite(model / "config.json", **change)
    with pytest.raises(PipelineError, match=sentence):
        teach(prepared, settings_of(model, False, max_length), SHORT, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_regression_is_learned_in_any_units_and_a_second_time(tmp_path: Path) -> None:
    began = save_teacher(tmp_path / "pretrained", make_task())
    corpus = save_learnable(tmp_path / "grades", make_task("regression"))
    other = with_labels(
        corpus, tmp_path / "minutes", lambda labels: [200.0 * label + 500.0 for label in labels], "train", "dev"
    )
    for second in (False, True):  # what begins with a head of these units keeps them
        values = []
        for prepared in (corpus, other):
            first = tmp_path / f"{prepared.name} tuned"
            out = tmp_path / f"{prepared.name} again" if second else first
            values.append(teach(prepared, settings_of(first if second else began), OPTIMISER, out))
        answers = [answers_of(tmp_path / f"{name} {'again' if second else 'tuned'}", [("word1 word30",), ("word2 word31",)])
                   for name in ("grades", "minutes")]  # fmt: skip
        assert values[0] == pytest.approx(values[1], abs=1e-3)
        assert values[0] > 0.8
        torch.testing.assert_close(answers[1], 200 * answers[0] + 500, rtol=0, atol=2)
    adopted = teach(corpus, settings_of(tmp_path / "grades again", fine_tune=False), OPTIMISER, tmp_path / "adopted")
    assert adopted == pytest.approx(values[0])
