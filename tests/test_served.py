"""What is stored, evaluated, saved and served is what transformers computes of each text alone, from its ids.

The reference is transformers alone: a saved folder, its own tokenizer and one text at a time. Texts contain padding and other
special tokens; tokenizers append nothing, an end or padding; configurations name a padding token or none.
"""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast, pipeline

from pipeline.augment.passes import augment, score
from pipeline.corpus.encoding import Integers, collate, encode
from pipeline.corpus.task import Floats
from pipeline.distill.jobs import StudentJob
from pipeline.distill.launch import obtain
from pipeline.evaluation.export import logits_in_mixed_batches
from pipeline.evaluation.onnx_graph import open_graph, write_graph
from pipeline.evaluation.quality import logits_of
from pipeline.models.architectures import DECODERS, head_settings
from pipeline.models.folder import load_tokenizer
from pipeline.models.forward import logits_from_ids
from pipeline.models.loading import load_classifier
from pipeline.shards.reader import Rows, Shards
from pipeline.training.teacher import TeacherSettings, teach
from tests.architectures import CONFIGURATIONS, VOCABULARY, of_type
from tests.world import SCORE_SETTINGS, augment_settings, make_task, runtime_at, student_settings

TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}
TASK = make_task(labels=("low", "middle", "high"))
SPECIAL = ("<unk>", "<pad>", "<s>", "</s>", "<mask>")
LENGTH = 17
TEXTS = (
    "w5 w6 w7", "w8", "w9 w10 w11 w12 w13 w14 w15", "w16 <pad> w17 w18", "<pad> w19 w20", "w21 w22 <pad>",
    "w23 <pad> <pad> <pad>", "<s> w24 </s>", "w25 </s>",
    "w26 <mask> w27 w28 w29", "</s> w30 <pad> </s> w31", "w32 w33 </s> <pad>", "<pad>",
    "w34 w35 w36 w37 w38 w39 w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15 w16",
)  # fmt: skip
"""Of mixed lengths, the last one cut; many contain special tokens as words, as markup does."""

ENDS = {"nothing": "$A", "an end": "$A </s>", "padding": "$A <pad>", "an end that pads": "$A </s>"}
"""What follows a text."""

ENCODERS = [kind for kind in CONFIGURATIONS if CONFIGURATIONS[kind].model_type not in DECODERS]
CASES = [
    # AutoTokenizer gives a Qwen 2 its own rules in place of those of the file, under which these texts have no token
    *itertools.product(["gpt2", "qwen3"], ENDS, [True, False]),
    *itertools.product(sorted({*DECODERS} - {"gpt2", "qwen2", "qwen3"}), ["padding"], [True, False]),
    *itertools.product(ENCODERS, ["an end"], [True]),
    *[("xlnet", end, False) for end in ("nothing", "padding", "an end that pads")],
    *[(kind, "padding", True) for kind in ("bert", "mpnet", "roberta", "xlm-roberta")],
]
EXPORTED = ("gpt2", "roberta")
"""Types whose student is exported too: a head's place and positions that depend on padding tokens within a text."""


def tokenizer_of(kind: str, ends: str) -> PreTrainedTokenizerFast:
    words = [*SPECIAL, *(f"w{number}" for number in range(len(SPECIAL), VOCABULARY))]
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    before = "" if kind in DECODERS else "<s> "
    special = [(token, SPECIAL.index(token)) for token in SPECIAL]
    backend.post_processor = TemplateProcessing(single=before + ENDS[ends], pair=f"{before}$A $B", special_tokens=special)
    given = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
    given |= {} if ends == "an end that pads" else {"pad_token": "<pad>"}
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, **given, model_max_length=LENGTH, model_input_names=names)


def save(folder: Path, kind: str, ends: str, named: bool) -> Path:
    model = of_type(kind, **head_settings(TASK), **({} if named else {"pad_token_id": None}))
    model.save_pretrained(folder)
    tokenizer_of(kind, ends).save_pretrained(folder)
    return folder


@torch.inference_mode()
def by_transformers(folder: Path, deltas: list[Tensor] | None = None) -> Tensor:
    """Logits [texts, outputs] of each text alone by transformers, its word embeddings moved by δ [tokens, width] if given."""
    tokenizer, found = AutoTokenizer.from_pretrained(folder), []
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    for number, text in enumerate(TEXTS):
        inputs = tokenizer(text, truncation=True, max_length=LENGTH, return_tensors="pt")
        moved = None if deltas is None else deltas[number]
        hook = model.get_input_embeddings().register_forward_hook(
            lambda _, __, out, by=moved: out if by is None else out + by.reshape(out.shape)
        )
        found.append(model(**inputs).logits)
        hook.remove()
    return torch.cat(found)


@pytest.mark.parametrize(("kind", "ends", "named"), CASES)
def test_texts_in_mixed_batches_have_the_logits_that_transformers_gives_each_alone(
    kind: str, ends: str, named: bool, tmp_path: Path
) -> None:
    wanted = by_transformers(folder := save(tmp_path, kind, ends, named))
    assert torch.pdist(wanted).max() > 1e-2, "the comparison is meaningless if all answers are alike"
    tokenizer, model = load_tokenizer(folder), load_classifier(folder)
    batch = collate(encode(tokenizer, list(TEXTS), None, LENGTH).input_ids, None, int(tokenizer.pad_token_id))
    with torch.inference_mode():
        torch.testing.assert_close(logits_from_ids(model, batch), wanted, **TOLERANCE)
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(by_transformers(tmp_path / "again"), wanted, **TOLERANCE)


def prepared_in(folder: Path) -> Path:
    folder.mkdir()
    for split in ("train", "dev", "test"):
        ids, labels = [f"{split}{number}" for number in range(len(TEXTS))], np.arange(len(TEXTS)) % TASK.outputs
        columns = {"id": ids, "text_a": list(TEXTS), "label": pa.array(labels, pa.int32())}
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    TASK.save(folder)
    return folder


def in_order(rows: Rows, values: Floats) -> Tensor:
    """Values of rows in the order of TEXTS."""
    return torch.from_numpy(np.asarray(values)[places_of(rows)])


def places_of(rows: Rows) -> Integers:
    """At which row each text is, by the number in its id."""
    return np.argsort([int(name.lstrip("traindevs")) for name in rows.column("example_id").to_pylist()])


def deltas_of(rows: Rows) -> list[Tensor]:
    """The stored δ [tokens, width] of each text."""
    codes, scales = rows.column("delta").to_pylist(), rows.lists("delta_scale")
    stored = [np.frombuffer(code, "<f2").astype(np.float32).reshape(len(scale), -1) * np.array(scale, np.float32)[:, None]
              for code, scale in zip(codes, scales, strict=True)]  # fmt: skip
    return [torch.from_numpy(stored[place]) for place in places_of(rows)]


@pytest.mark.parametrize(
    ("kind", "ends", "named"),
    [("llama", "an end that pads", False), ("gpt2", "padding", True), ("roberta", "an end", True), ("xlnet", "padding", False)],
)
def test_what_is_stored_evaluated_saved_served_and_exported_is_what_transformers_computes(
    kind: str, ends: str, named: bool, tmp_path: Path
) -> None:
    folder, prepared = save(tmp_path / "model", kind, ends, named), prepared_in(tmp_path / "prepared")
    teacher, out, runtime = tmp_path / "teacher", tmp_path / "student", runtime_at(tmp_path)
    learnt = student_settings({"num_train_epochs": 1}, layers=1)
    teach(prepared, TeacherSettings(model=str(folder), fine_tune=False, max_length=LENGTH), learnt.optimiser, teacher)
    wanted = by_transformers(folder)
    torch.testing.assert_close(by_transformers(teacher), wanted, **TOLERANCE, msg="the adopted teacher as it was saved")

    score(prepared, teacher, SCORE_SETTINGS, runtime, tmp_path / "scores")
    scores = Shards(tmp_path / "scores")
    stored = scores.rows("train", 0)
    found = in_order(stored, stored.matrix("teacher_logits"))
    torch.testing.assert_close(found, wanted, **TOLERANCE, msg="stored logits")

    augment(tmp_path / "scores", teacher, None, augment_settings(codec="float16", variants=1), runtime, tmp_path / "shards")
    variants = Shards(tmp_path / "shards")
    rows = variants.rows("train", 1)
    perturbed = in_order(rows, rows.matrix("perturbed_logits"))
    torch.testing.assert_close(perturbed, by_transformers(teacher, deltas_of(rows)), **TOLERANCE, msg="perturbed logits")

    obtain(StudentJob("half", tmp_path / "scores", tmp_path / "shards", teacher, learnt), runtime, out, tmp_path / "cost.json")
    student, test = load_classifier(out), scores.rows("test", 0)
    pad = scores.manifest.pad_token_id
    evaluated = in_order(test, logits_of(student, test, pad, 8))
    torch.testing.assert_close(by_transformers(out), evaluated, **TOLERANCE, msg="the student as it was saved")
    served = pipeline("text-classification", str(out), truncation=True)
    assert [answer["label"] for answer in served(list(TEXTS))] == [TASK.labels[best] for best in evaluated.argmax(dim=1)]

    if kind not in EXPORTED:
        return
    write_graph(student, token_types=False, path=tmp_path / "student.onnx")
    exported = logits_in_mixed_batches(open_graph(tmp_path / "student.onnx"), test, pad, TASK.outputs)
    torch.testing.assert_close(in_order(test, exported), evaluated, **TOLERANCE, msg="the exported student")
