"""A tiny world for tests: a task, a tokenizer, models with random weights, a corpus, shards. Nothing is downloaded."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    set_seed,
)

from pipeline.augment.batches import Inputs
from pipeline.augment.passes import augment, soft_label
from pipeline.augment.plans import Augmentation
from pipeline.augment.variants import Label
from pipeline.config.corpus import Split
from pipeline.config.settings import AugmentSettings, InferenceSettings, RuntimeSettings, StudentSettings
from pipeline.corpus.task import Task
from pipeline.models.architectures import head_settings
from pipeline.perturbation.surrogate import SurrogateFacts, SurrogateFolder
from pipeline.shards.manifest import LINEAGE_FILE, manifest_hash
from pipeline.store.files import write_json
from pipeline.store.keys import Key
from pipeline.training.masked_lm import MASKED_LM_FILE, MaskedLMFacts

WORDS = [f"word{number}" for number in range(60)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MAX_LENGTH = 24
WIDTH, NARROW = 32, 16

Floats = npt.NDArray[np.float32]


def make_task(kind: str = "classification", pair: bool = False, labels: tuple[str, ...] = ("bad", "good")) -> Task:
    """A task of the tiny world."""
    if kind == "regression":
        return Task(name="tiny", kind="regression", metric="pearson", labels=(), pair=pair)
    return Task(name="tiny", kind="classification", metric="accuracy", labels=labels, pair=pair)


def make_tokenizer(types: bool = True) -> PreTrainedTokenizerFast:
    """Whole words as tokens, BERT's special tokens and pairs, with token types or without."""
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", *(["token_type_ids"] if types else []), "attention_mask"],
    )


def save_teacher(folder: Path, task: Task, seed: int = 0) -> Path:
    """A BERT of 4 layers × 32 with random weights, large enough that its logits differ, in a folder as `teach` writes it."""
    set_seed(seed)
    config = BertConfig(
        vocab_size=len(SPECIAL + WORDS),
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.3,
        **head_settings(task),
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    task.save(folder)
    return folder


def save_student(folder: Path, task: Task, soft_labels: Path) -> Path:
    """One layer of another teacher in a folder as `distill` writes it, for these soft_labels."""
    save_teacher(folder, task, seed=7)
    AutoModelForSequenceClassification.from_pretrained(folder, num_hidden_layers=1).save_pretrained(folder)
    write_json(folder / LINEAGE_FILE, {"soft_labels": manifest_hash(soft_labels)})
    return folder


def save_on_hub(cache: Path, revisions: dict[str, int]) -> None:
    """A cache of the hub with org/teacher: of each branch, tag or commit the seed of its weights."""
    place = cache / "models--org--teacher"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    for name, seed in revisions.items():
        commit = f"{seed:040x}"
        (place / "refs" / name).write_text(commit)
        save_teacher(place / "snapshots" / commit, make_task(), seed)


def save_masked_lm(folder: Path) -> Path:
    """What `words` writes: a masked language model of one layer × 16, random weights, the tokenizer of the teacher."""
    set_seed(3)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(SPECIAL + WORDS), max_position_embeddings=MAX_LENGTH, **sizes)
    BertForMaskedLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    write_json(folder / MASKED_LM_FILE, MaskedLMFacts(model="some").model_dump())
    return folder


def spoil(folder: Path, name: str, row: int | slice, value: float) -> Path:
    """One row of a saved weight has this value."""
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights[name][row] = value
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def save_surrogate(folder: Path, seeds: Sequence[int], teacher: Path | None = None, key: Key | None = None) -> SurrogateFolder:
    """The surrogate ``1`` of a folder; its checkpoints are other teachers or, with ``teacher``, half as wide with a map."""
    made, task, linear = SurrogateFolder(folder / "1"), make_task(), None
    for number, seed in enumerate(seeds, start=1):
        save_teacher(made.checkpoint(number), task, seed)
        if teacher is not None:
            set_seed(seed)
            config = BertConfig.from_pretrained(teacher, hidden_size=NARROW, num_hidden_layers=2, **head_settings(task))
            model = BertForSequenceClassification(config)
            table = Plain(teacher).words
            linear = torch.linalg.qr(torch.randn(WIDTH, NARROW)).Q if linear is None else linear
            model.get_input_embeddings().weight.data = table @ linear
            model.save_pretrained(made.checkpoint(number))
    made.save(
        SurrogateFacts(key=key or {}, soft_labels="unread", checkpoints=len(seeds), start={}, dev=0.5, settings={}), linear
    )
    return made


def save_prepared(folder: Path, task: Task, rows: dict[Split, int], seed: int = 0) -> Path:
    """Random texts of different lengths in a folder as `prepare` writes it."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)

    def text() -> str:
        return " ".join(generator.choice(WORDS, size=generator.integers(2, 12)))

    for split, count in rows.items():
        labels = generator.normal(size=count) if task.kind == "regression" else generator.integers(0, 2, size=count)
        columns = {
            "id": pa.array([f"{split}{number:05d}" for number in range(count)]),
            "text_a": pa.array([text() for _ in range(count)]),
            **({"text_b": pa.array([text() for _ in range(count)])} if task.pair else {}),
            "label": pa.array(labels, type=pa.float32() if task.kind == "regression" else pa.int32()),
        }
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    task.save(folder)
    return folder


TRAINING: dict[str, Any] = {
    "num_train_epochs": 2, "batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 1e-3,
    "lr_scheduler_type": "linear", "warmup_ratio": 0.1, "weight_decay": 0.0, "max_grad_norm": 1.0, "precision": "float32",
    "seed": 3,
}  # fmt: skip
MASKED_LM: dict[str, Any] = TRAINING | {
    "model": None, "fine_tune": True, "mlm_probability": 0.15, "max_rows": None, "weight_decay": 0.01, "seed": 1,
}  # fmt: skip
INFERENCE_SECTION: dict[str, Any] = {"rows_per_shard": 16, "batch_size": 8, "precision": "float32"}
INFERENCE = InferenceSettings.model_validate(INFERENCE_SECTION)
AUGMENT: dict[str, Any] = {
    "variants": 2,
    "recipes": [["perturb"]],
    "perturbation": {
        "gradient_from": "teacher", "norm": "l2", "epsilon": 0.2, "init": 0.5, "num_steps": 1, "step_size": 1.0,
    },
    "text_edits": {"mask": 0.2, "delete": 0.2, "swap": 0.2, "span": 0.5},
    "masked_lm": {"replace": 0.4, "candidates": 5},
    "codec": "int8",
    "seed": 1,
    "calibration_rows": 8,
    "inference": INFERENCE_SECTION,
}  # fmt: skip
"""The sections ``augment``, ``perturbation`` and ``inference`` of a params.yaml of the tiny world, as one."""

STUDENT: dict[str, Any] = {
    "initial_weights": "teacher",
    "num_hidden_layers": 2,
    "variant_policy": "rotate",
    "loss": {"labels": 0.0, "soft_labels": 1.0, "variants": 1.0, "form": "kl", "temperature": 1.0},
    "training": TRAINING,
}


def sections_of(augment: Mapping[str, Any]) -> dict[str, Any]:
    """``AUGMENT`` or the like as the sections of a parameter file."""
    inner = ("perturbation", "inference")
    return {"augment": {name: value for name, value in augment.items() if name not in inner}} | {
        name: augment[name] for name in inner
    }


def student_settings(training: dict[str, Any] | None = None, **changed: Any) -> StudentSettings:
    """Settings of a student of two layers, some of them changed; a ``loss`` is merged into the usual one."""
    loss = STUDENT["loss"] | changed.pop("loss", {})
    sized = {"depth", "teacher_layers"} & changed.keys()
    usual = {name: value for name, value in STUDENT.items() if not (sized and name == "num_hidden_layers")}
    return StudentSettings.model_validate(usual | {"training": TRAINING | (training or {}), "loss": loss} | changed)


def augment_settings(perturbation: dict[str, Any] | None = None, **changed: Any) -> AugmentSettings:
    """Settings of variants, some of them changed; ``batch_size`` and ``precision`` are those of inference."""
    inference = INFERENCE_SECTION | {name: changed.pop(name) for name in ("batch_size", "precision") if name in changed}
    search = AUGMENT["perturbation"] | (perturbation or {})
    return AugmentSettings.model_validate(AUGMENT | changed | {"perturbation": search, "inference": inference})


AUGMENT_SETTINGS = augment_settings()


RUNTIME: dict[str, Any] = {
    "workers": 0, "store": "store", "cache": "cache", "cache_bytes": 10**9, "max_bytes": None, "world_size": 1,
    "dataloader_num_workers": 0,
    "save_steps": 0, "report_to": [],
}  # fmt: skip


def runtime_at(folder: Path, workers: int = 0) -> RuntimeSettings:
    """A store of its own, and this process as the worker."""
    return RuntimeSettings.model_validate(RUNTIME | {"workers": workers, "store": str(folder / "store")})


def make_shards(folder: Path, prepared: Path, teacher: Path, settings: AugmentSettings = AUGMENT_SETTINGS) -> tuple[Path, Path]:
    """Soft labels and variants of a corpus, made in this process: the folders `soft_label` and `augment` would write."""
    soft_label(prepared, teacher, INFERENCE, runtime_at(folder), folder / "soft_labels")
    augment(Augmentation.of(folder / "soft_labels", teacher, settings), runtime_at(folder), folder / "shards")
    return folder / "soft_labels", folder / "shards"


def make_inputs(rows: int = 20, seed: int = 0) -> Inputs:
    """Encoded single texts and pairs of 3 to 24 tokens, in no order of length."""
    generator = np.random.default_rng(seed)
    ids, types = [], []
    for length in [MAX_LENGTH, 3, *generator.integers(3, MAX_LENGTH, rows - 2)]:
        words = generator.integers(len(SPECIAL), len(SPECIAL + WORDS), length)
        words[0], words[-1] = 2, 3
        middle = generator.integers(1, length)
        words[middle - 1] = words[middle - 1] if middle < 3 else 3
        ids.append(words.astype(np.int32))
        types.append((np.arange(length) >= middle).astype(np.int8))
    return Inputs([f"example {number}" for number in range(rows)], ids, types)


class Plain:
    """A classifier by transformers alone, one unpadded row at a time."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.words = self.model.get_input_embeddings().weight.detach()

    @torch.inference_mode()
    def logits(self, inputs: Inputs) -> Floats:
        assert inputs.token_type_ids is not None
        rows = zip(inputs.input_ids, inputs.token_type_ids, strict=True)
        found = [
            self.model(input_ids=torch.tensor(ids)[None].long(), token_type_ids=torch.tensor(types)[None].long()).logits
            for ids, types in rows
        ]
        return torch.cat(found).numpy()

    @torch.inference_mode()
    def logits_on(self, inputs: Inputs, row: int, delta: Floats) -> Floats:
        """Logits [outputs] of one row moved by δ [tokens, width]."""
        assert inputs.token_type_ids is not None
        embeddings = self.words[torch.tensor(inputs.input_ids[row]).long()] + torch.tensor(delta)
        types = torch.tensor(inputs.token_type_ids[row])[None].long()
        logits: Floats = self.model(inputs_embeds=embeddings[None], token_type_ids=types).logits[0].numpy()
        return logits


def decoded(label: Label, codec: str = "int8") -> Floats:
    """The stored δ [tokens, width], decoded here and not by the codec."""
    assert label.delta is not None
    if codec == "sign":
        codes = np.unpackbits(np.frombuffer(label.delta, np.uint8)).astype(np.float32).reshape(-1, WIDTH) * 2 - 1
    else:
        codes = np.frombuffer(label.delta, {"int8": "<i1", "float16": "<f2"}[codec]).astype(np.float32).reshape(-1, WIDTH)
    return codes * np.array(label.delta_scale, dtype=np.float32)[:, None]


def rewrite(path: Path, **changed: Any) -> None:
    """A JSON file with some of its values changed."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changed), encoding="utf-8")
