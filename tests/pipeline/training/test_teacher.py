import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast, pipeline

from pipeline.config.errors import PipelineError
from pipeline.corpus.task import Task
from pipeline.config.settings import TeacherSettings
from pipeline.training.teacher import teach
from pipeline.config.settings import TrainingSettings
from tests import world
from tests.architectures import of_type
from tests.world import MAX_LENGTH, WORDS, make_task, make_tokenizer, save_prepared, save_teacher

OPTIMISER = TrainingSettings.model_validate(
    world.OPTIMISER | {"num_train_epochs": 8, "batch_size": 16, "learning_rate": 2e-3, "seed": 1}
)
LEARNABLE = {"word1": 0, "word2": 1}
"""The word that decides a text's label."""


def settings_of(model: Path, fine_tune: bool = True, max_length: int = 16) -> TeacherSettings:
    return TeacherSettings(model=str(model), fine_tune=fine_tune, max_length=max_length)


def save_learnable(folder: Path, task: Task, rows: int = 160, unlabelled: bool = False) -> Path:
    """A corpus whose label is told by one word, at the first or the last place."""
    generator = np.random.default_rng(5)
    folder.mkdir()
    for split in ("train", "dev", "test"):
        labels = [int(label) for label in generator.integers(0, 2, rows)]
        texts = []
        for label in labels:
            others = list(generator.choice(WORDS[10:], size=generator.integers(1, 6)))
            told = next(word for word, of in LEARNABLE.items() if of == label)
            texts.append(" ".join([told, *others]))
        held: list[Any] = [None] * rows if unlabelled and split == "train" else labels
        kind = pa.float32() if task.kind == "regression" else pa.int32()
        columns = {"id": [f"{split}{i}" for i in range(rows)], "text_a": texts, "label": pa.array(held, type=kind)}
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    task.save(folder)
    return folder


def edit_config(folder: Path, **changed: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def dev_texts(prepared: Path) -> tuple[list[str], list[float]]:
    columns = pq.read_table(prepared / "dev.parquet").to_pydict()
    return columns["text_a"], columns["label"]


def answers_of(folder: Path, texts: list[str]) -> torch.Tensor:
    """The logits by transformers alone, each text by itself."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return torch.cat([model(**tokenizer(text, truncation=True, return_tensors="pt")).logits for text in texts])


def save_pretrained_of(kind: str, folder: Path) -> Path:
    """A tiny classifier that reads the last position, its tokenizer without a padding token."""
    of_type(kind, vocab_size=65, pad_token_id=None).save_pretrained(folder)
    backend = make_tokenizer().backend_tokenizer
    backend.post_processor = TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    names = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]", model_input_names=names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def learnable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_learnable(tmp_path_factory.mktemp("corpus") / "prepared", make_task())


def test_a_fine_tuned_teacher_has_learned_the_task_and_works_with_transformers_alone(learnable: Path, tmp_path: Path) -> None:
    pretrained = save_teacher(tmp_path / "pretrained", make_task(labels=("x", "y", "z")))
    value = teach(learnable, settings_of(pretrained), OPTIMISER, tmp_path / "out")

    texts, labels = dev_texts(learnable)
    right = float((answers_of(tmp_path / "out", texts).argmax(-1) == torch.tensor(labels)).float().mean())
    assert value == pytest.approx(right)
    assert value > 0.9
    assert Task.read(tmp_path / "out") == make_task()
    named = pipeline("text-classification", str(tmp_path / "out"))(["word1 word30", "word2 word30"])
    assert [answer["label"] for answer in named] == ["bad", "good"]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 16
    with (tmp_path / "out/history.csv").open() as file:
        history = list(csv.DictReader(file))
    assert [row["epoch"] for row in history] == [str(epoch) for epoch in range(1, 9)]
    assert max(float(row["dev"]) for row in history) == value


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "xlnet"])
def test_a_teacher_that_reads_the_last_position_is_fine_tuned_and_adopted_and_answers_batches_as_texts_alone(
    kind: str, learnable: Path, tmp_path: Path
) -> None:
    pretrained = save_pretrained_of(kind, tmp_path / "pretrained")
    value = teach(learnable, settings_of(pretrained), OPTIMISER, tmp_path / "tuned")
    texts, labels = dev_texts(learnable)
    right = float((answers_of(tmp_path / "tuned", texts).argmax(-1) == torch.tensor(labels)).float().mean())
    assert value == pytest.approx(right)
    assert value > 0.8
    assert AutoTokenizer.from_pretrained(tmp_path / "tuned").pad_token == "[SEP]"
    assert AutoConfig.from_pretrained(tmp_path / "tuned").pad_token_id == 3
    adopted = teach(learnable, settings_of(tmp_path / "tuned", fine_tune=False), OPTIMISER, tmp_path / "adopted")
    assert adopted == pytest.approx(value)


def test_what_is_measured_while_training_is_what_each_text_alone_gives(learnable: Path, tmp_path: Path) -> None:
    """Barely trained, so that a text answered otherwise beside longer ones would be counted otherwise."""
    pretrained = save_pretrained_of("xlnet", tmp_path / "pretrained")
    barely = OPTIMISER.model_copy(update={"num_train_epochs": 1, "learning_rate": 1e-9})
    value = teach(learnable, settings_of(pretrained), barely, tmp_path / "out")
    texts, labels = dev_texts(learnable)
    assert value == float((answers_of(tmp_path / "out", texts).argmax(-1) == torch.tensor(labels)).double().mean())


def test_fine_tuning_twice_gives_the_same_weights(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    short = OPTIMISER.model_copy(update={"num_train_epochs": 1})
    for number, name in enumerate(("first", "second")):
        torch.manual_seed(number)
        teach(prepared, settings_of(teacher), short, tmp_path / name)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second
    assert first != (teacher / "model.safetensors").read_bytes()


def test_rows_without_a_label_are_not_learned_from(tmp_path: Path, teacher: Path) -> None:
    whole = save_prepared(tmp_path / "whole", make_task(), {"train": 40, "dev": 20, "test": 20})
    table = pq.read_table(whole / "train.parquet")
    known = [number % 3 != 0 for number in range(40)]
    for name, rows in (("holes", holes(table, known)), ("shorter", table.filter(pa.array(known)))):
        shutil.copytree(whole, tmp_path / name)
        pq.write_table(rows, tmp_path / name / "train.parquet")
        teach(
            tmp_path / name,
            settings_of(teacher),
            OPTIMISER.model_copy(update={"num_train_epochs": 1}),
            tmp_path / f"{name} out",
        )
    learned = [(tmp_path / f"{name} out" / "model.safetensors").read_bytes() for name in ("holes", "shorter")]
    assert learned[0] == learned[1]


def holes(table: pa.Table, known: list[bool]) -> pa.Table:
    labels = [label if there else None for label, there in zip(table["label"].to_pylist(), known, strict=True)]
    return table.set_column(table.column_names.index("label"), "label", pa.array(labels, type=pa.int32()))


def test_a_corpus_without_labels_can_be_taught_only_by_a_checkpoint_that_knows_them(teacher: Path, tmp_path: Path) -> None:
    corpus = save_learnable(tmp_path / "prepared", make_task(), rows=20, unlabelled=True)
    with pytest.raises(PipelineError, match=r"no training example of tiny has a label.*set teacher.fine_tune: false"):
        teach(corpus, settings_of(teacher), OPTIMISER, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    teach(corpus, settings_of(teacher, fine_tune=False), OPTIMISER, tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").exists()


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_teacher_that_gives_one_answer_to_all_is_noted(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = make_task(kind)
    prepared = save_prepared(tmp_path / "prepared", task, {"train": 30, "dev": 30, "test": 4})
    model = save_teacher(tmp_path / "model", task)
    weights = safetensors.torch.load_file(model / "model.safetensors")
    weights["classifier.weight"].zero_()
    safetensors.torch.save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    teach(prepared, settings_of(model, fine_tune=False), OPTIMISER, tmp_path / "out")
    told = capsys.readouterr().out
    assert f"note: teacher of tiny: {task.metric} " in told
    assert "learning_rate" not in told, "it was adopted"


def test_a_teacher_that_has_learned_is_not_noted(
    learnable: Path, tmp_path: Path, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert teach(learnable, settings_of(teacher), OPTIMISER, tmp_path / "out") > 0.9
    assert "note:" not in capsys.readouterr().out


def test_an_adopted_teacher_keeps_its_weights_bit_by_bit_and_its_answers(teacher: Path, prepared: Path, tmp_path: Path) -> None:
    value = teach(prepared, settings_of(teacher, fine_tune=False), OPTIMISER, tmp_path / "out")
    kept = safetensors.torch.load_file(tmp_path / "out/model.safetensors")
    given = safetensors.torch.load_file(teacher / "model.safetensors")
    assert kept.keys() == given.keys()
    for name, weight in given.items():
        assert torch.equal(kept[name], weight), name
    texts, labels = dev_texts(prepared)
    assert value == pytest.approx(float((answers_of(teacher, texts).argmax(-1) == torch.tensor(labels)).float().mean()))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 16


def test_a_checkpoint_of_other_labels_is_not_adopted(prepared: Path, tmp_path: Path) -> None:
    other = save_teacher(tmp_path / "other", make_task(labels=("good", "bad")))
    with pytest.raises(PipelineError, match=r"other answers \['good', 'bad'\], but the labels of tiny are \['bad', 'good'\]; "):
        teach(prepared, settings_of(other, fine_tune=False), OPTIMISER, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", ["a head of three", "no head"])
def test_a_checkpoint_whose_weights_hold_no_such_head_is_not_adopted(fault: str, prepared: Path, tmp_path: Path) -> None:
    labels = ("bad", "good", "fine") if fault == "a head of three" else ("bad", "good")
    other = save_teacher(tmp_path / "other", make_task(labels=labels))
    if fault == "a head of three":
        edit_config(other, id2label={"0": "bad", "1": "good"}, label2id={"bad": 0, "good": 1})
    else:
        weights = safetensors.torch.load_file(other / "model.safetensors")
        body = {name: weight for name, weight in weights.items() if not name.startswith("classifier")}
        safetensors.torch.save_file(body, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PipelineError, match=r"classifier"):
        teach(prepared, settings_of(other, fine_tune=False), OPTIMISER, tmp_path / "out")


def test_a_text_is_cut_at_the_greatest_length_where_the_settings_say(learnable: Path, tmp_path: Path) -> None:
    pretrained = save_teacher(tmp_path / "pretrained", make_task())
    teach(learnable, settings_of(pretrained, fine_tune=False, max_length=4), OPTIMISER, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer("word1 word2 word3 word4 word5", truncation=True)["input_ids"]) == 4


@pytest.mark.parametrize("fine_tune", [True, False])
def test_a_greatest_length_over_the_tokenizers_is_refused(
    teacher: Path, prepared: Path, tmp_path: Path, fine_tune: bool
) -> None:
    teach_at = settings_of(teacher, fine_tune, MAX_LENGTH + 1)
    with pytest.raises(PipelineError) as refusal:
        teach(prepared, teach_at, OPTIMISER, tmp_path / "out")
    assert str(refusal.value) == f"max_length is 25, but {teacher} takes at most 24 tokens"
    assert not (tmp_path / "out").exists()


def test_a_greatest_length_over_the_models_is_refused_where_the_tokenizer_states_none(
    teacher: Path, prepared: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(teacher, tmp_path / "unstated"))
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = int(1e30)
    tokenizer.save_pretrained(folder)
    with pytest.raises(PipelineError, match=rf"max_length is 25, but {folder} takes at most 24 tokens"):
        teach(prepared, settings_of(folder, False, MAX_LENGTH + 1), OPTIMISER, tmp_path / "out")
    teach(prepared, settings_of(folder, False, MAX_LENGTH), OPTIMISER, tmp_path / "out")


def test_a_regression_teacher_is_fine_tuned_and_adopted(tmp_path: Path) -> None:
    task = make_task("regression")
    corpus = save_learnable(tmp_path / "prepared", task)
    pretrained = save_teacher(tmp_path / "pretrained", make_task())
    value = teach(corpus, settings_of(pretrained), OPTIMISER, tmp_path / "tuned")
    assert value > 0.8
    assert answers_of(tmp_path / "tuned", ["word1 word30"]).shape == (1, 1)
    again = teach(corpus, settings_of(tmp_path / "tuned", fine_tune=False), OPTIMISER, tmp_path / "adopted")
    assert again == pytest.approx(value)
    with pytest.raises(PipelineError, match=r"answers 2 classes, but tiny is a regression"):
        teach(corpus, settings_of(pretrained, fine_tune=False), OPTIMISER, tmp_path / "refused")


def in_other_units(prepared: Path, out: Path) -> Path:
    """The corpus with a · label + b in place of each label, as minutes might stand where there were grades."""
    shutil.copytree(prepared, out)
    for split in ("train", "dev"):
        table = pq.read_table(out / f"{split}.parquet")
        labels = pa.array(200.0 * table["label"].to_numpy() + 500.0, type=pa.float32())
        pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", labels), out / f"{split}.parquet")
    return out


@pytest.mark.parametrize("again", [False, True])
def test_the_units_of_a_regression_change_its_answers_and_nothing_else(again: bool, tmp_path: Path) -> None:
    task = make_task("regression")
    corpus = save_learnable(tmp_path / "prepared", task)
    other, began = in_other_units(corpus, tmp_path / "other"), save_teacher(tmp_path / "pretrained", make_task())
    answered, values = [], []
    for number, prepared in enumerate((corpus, other)):
        out = tmp_path / f"tuned{number}"
        values.append(teach(prepared, settings_of(began), OPTIMISER, out))
        if again:  # what begins with a head of these units keeps them
            values[-1] = teach(prepared, settings_of(out), OPTIMISER, tmp_path / f"again{number}")
            out = tmp_path / f"again{number}"
        answered.append(answers_of(out, ["word1 word30", "word2 word31", "word1 word40"]))
    assert values[0] == pytest.approx(values[1], abs=1e-3)
    torch.testing.assert_close(answered[1], 200 * answered[0] + 500, rtol=0, atol=2)


def test_a_teacher_of_pairs_sees_both_texts(tmp_path: Path) -> None:
    task = make_task(pair=True)
    corpus = save_prepared(tmp_path / "prepared", task, {"train": 20, "dev": 30, "test": 10})
    pretrained = save_teacher(tmp_path / "pretrained", task)
    value = teach(corpus, settings_of(pretrained, fine_tune=False), OPTIMISER, tmp_path / "out")
    columns = pq.read_table(corpus / "dev.parquet").to_pydict()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    right = []
    for first, second, label in zip(columns["text_a"], columns["text_b"], columns["label"], strict=True):
        with torch.inference_mode():
            logits = model(**tokenizer(first, second, truncation=True, return_tensors="pt")).logits
        right.append(int(logits.argmax()) == label)
    assert value == pytest.approx(np.mean(right))
