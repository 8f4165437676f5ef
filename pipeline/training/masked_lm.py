"""The masked language model of a task: fine-tuned on its train texts, adopted as it is, or none."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings, read_facts
from pipeline.config.settings import MaskedLMSettings, TeacherSettings
from pipeline.corpus.encoding import Batch, Ids, Integers, Types, collate, encode
from pipeline.corpus.seeding import sample, seed_of
from pipeline.corpus.task import Task
from pipeline.models.architectures import positions_of
from pipeline.models.folder import ModelFolder
from pipeline.models.forward import logits_at, word_embeddings
from pipeline.models.loading import check_tokenizer, check_vocabulary, load_masked_lm
from pipeline.store.files import folder_written_whole, write_json
from pipeline.training.callbacks import NO_CHECKPOINTS, RunOptions
from pipeline.training.order import Lengths, MicroBatch
from pipeline.training.trainer import IGNORED, Objective, TrainDev, fine_tune, write_history

MASKED_LM_FILE = "masked_lm.json"

SHOWN_AS_MASK, SHOWN_AS_ANOTHER = 0.8, 0.1
"""Shares of the tokens to be guessed; the rest is shown unchanged (Devlin et al. 2019, §3.1)."""


class MaskedLMFacts(Settings):
    """``masked_lm.json``, written last."""

    model: str | None
    """Identity of the model that was adopted or fine-tuned; None if the task needs none."""
    fitted: bool = False
    perplexity: float | None = None
    """Of a fine-tuned model on dev: exp of the masked tokens' mean cross-entropy, every text counting equally."""

    def summary(self) -> str:
        """A summary for the terminal."""
        if self.model is None:
            return "no masked language model, since no recipe needs one"
        if self.perplexity is None:
            return "adopted as it is"
        return f"fine-tuned, dev perplexity {self.perplexity:.3g} (probability of a masked token {1 / self.perplexity:.4f})"


def masked_lm_in(folder: Path) -> MaskedLMFacts:
    """The facts in a folder of ``prepare_masked_lm``; raises a ``PipelineError`` if there are none or they are damaged."""
    return read_facts(MaskedLMFacts, folder / MASKED_LM_FILE, f"{folder} has no {MASKED_LM_FILE}; run stage masked_lm")


def prepare_masked_lm(
    prepared: Path,
    teacher: TeacherSettings,
    settings: MaskedLMSettings | None,
    out: Path,
    options: RunOptions = NO_CHECKPOINTS,
) -> MaskedLMFacts:
    """Write the masked language model of a task to ``out``, or only the facts if ``settings`` is None: no recipe needs one.

    Texts are truncated to the teacher's ``max_length``.
    """
    facts, history = MaskedLMFacts(model=None), list[dict[str, float]]()
    if settings is not None:
        source = ModelFolder(settings.model or teacher.model)
        check_masked_lm(source, ModelFolder(teacher.model), settings.fine_tune, teacher.max_length)
        if settings.fine_tune:
            model, history = _fine_tuned(prepared, source, teacher.max_length, settings, options)
        else:
            model, _ = load_masked_lm(source)
        perplexity = 1 / history[-1]["dev"] if history else None
        facts = MaskedLMFacts(model=source.identity, fitted=settings.fine_tune, perplexity=perplexity)
    with folder_written_whole(out) as folder:
        if settings is not None:
            model.save_pretrained(folder)
            source.tokenizer.save_pretrained(folder)
            write_history(folder, history)
        write_json(folder / MASKED_LM_FILE, facts.model_dump())
    return facts


def check_masked_lm(model: ModelFolder, teacher: ModelFolder, fine_tune: bool, max_length: int) -> None:
    """Raise if a masked language model cannot serve a teacher; reads names and shapes of weights only.

    With ``fine_tune`` the model needs no head yet. ``max_length`` is the length in tokens of truncated texts.
    """
    check_tokenizer(model, teacher.tokenizer)
    if (longest := positions_of(model.config)) < max_length:
        raise PipelineError(
            f"{model.source} takes at most {longest} tokens, but teacher.max_length is {max_length}; name another model"
        )
    check_vocabulary(model)
    load_masked_lm(model, new_head=fine_tune, device_map="meta")


def _fine_tuned(
    prepared: Path, source: ModelFolder, max_length: int, settings: MaskedLMSettings, options: RunOptions
) -> tuple[PreTrainedModel, list[dict[str, float]]]:
    """Fine-tune an encoder with a head that fills masks.

    Square layers of a new head begin as the identity. If, as in BERT, one layer precedes the projection to the word embeddings,
    the head begins by comparing the encoder's output with the words' embeddings.
    """
    set_seed(settings.seed % 2**32)  # weights that the file lacks start at random
    model, fresh = load_masked_lm(source, new_head=True)
    with torch.no_grad():
        for weight in (model.get_parameter(name) for name in fresh):
            if weight.dim() == 2 and weight.shape[0] == weight.shape[1]:
                torch.nn.init.eye_(weight)
    known = len(word_embeddings(model))  # a tokenizer may have more tokens, which no text contains
    train, dev = (masked_rows(prepared / f"{split}.parquet", source.tokenizer, known, max_length, settings)
                  for split in ("train", "dev"))  # fmt: skip
    objective = Objective(
        loss_of,
        lambda found: math.exp(found.mean()),  # geometric mean over rows, the inverse of the perplexity
        lambda model, batch: -loss_of(model, batch).unsqueeze(1),
    )
    fit = fine_tune(f"masked_lm {Task.read(prepared).name}", model, TrainDev(train, dev), objective, settings, options)
    return model, fit.history


@dataclass(frozen=True)
class MaskedRows:
    """Encoded texts, some of whose tokens are masked; which ones is a function of seed, example and epoch."""

    example_ids: list[str]
    input_ids: list[Ids]
    token_type_ids: list[Types] | None
    settings: MaskedLMSettings
    special: npt.NDArray[np.int64]
    """Ids that are never masked, nor drawn in another token's place."""
    mask_id: int
    pad_id: int
    vocabulary: int

    def lengths(self) -> Lengths:
        return np.array([len(ids) for ids in self.input_ids], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.input_ids)

    def batch(self, rows: MicroBatch) -> Batch:
        """Masked inputs; "labels" [rows, tokens] are the tokens to be guessed, ``IGNORED`` elsewhere."""
        shown, guessed = zip(*(self._masked(int(row), rows.epoch) for row in rows.rows), strict=True)
        types = None if self.token_type_ids is None else [self.token_type_ids[row] for row in rows.rows]
        labels = collate(guessed, None, IGNORED)["input_ids"]
        return collate(shown, types, self.pad_id) | {"labels": labels}

    def _masked(self, row: int, epoch: int) -> tuple[Integers, Integers]:
        """A row's masked inputs and labels; at least one token is to be guessed if any is ordinary."""
        ids = self.input_ids[row]
        draw = np.random.Generator(np.random.Philox(key=seed_of("masked", self.settings.seed, self.example_ids[row], epoch)))
        chance = np.where(np.isin(ids, self.special), np.inf, draw.random(len(ids)))
        guessed = (chance < self.settings.mlm_probability) | ((chance == chance.min()) & (chance < np.inf))
        how, others = draw.random(len(ids)), self._ordinary[draw.integers(len(self._ordinary), size=len(ids))]
        hidden = np.where(how < SHOWN_AS_MASK, self.mask_id, np.where(how < SHOWN_AS_MASK + SHOWN_AS_ANOTHER, others, ids))
        return np.where(guessed, hidden, ids), np.where(guessed, ids, IGNORED)

    @cached_property
    def _ordinary(self) -> npt.NDArray[np.int64]:
        return np.setdiff1d(np.arange(self.vocabulary), self.special)


def masked_rows(
    file: Path, tokenizer: PreTrainedTokenizerBase, known: int, max_length: int, settings: MaskedLMSettings
) -> MaskedRows:
    """The rows of a prepared split for a model of ``known`` tokens, or the ``max_rows`` whose ids have the smallest hashes."""
    table = pq.read_table(file)
    if settings.max_rows is not None and len(table) > settings.max_rows:
        table = table.take(sample(table["id"].to_pylist(), settings.max_rows, "words", settings.seed))
    columns = table.to_pydict()
    encoded = encode(tokenizer, columns["text_a"], columns.get("text_b"), max_length)
    return MaskedRows(
        columns["id"],
        encoded.input_ids,
        encoded.token_type_ids,
        settings,
        np.array(sorted(tokenizer.all_special_ids), dtype=np.int64),
        int(tokenizer.mask_token_id),
        int(tokenizer.pad_token_id),
        min(len(tokenizer), known),
    )


def loss_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Cross-entropy of the tokens to be guessed, in nats, mean over those of each row, [rows]."""
    rows, places = (batch["labels"] != IGNORED).nonzero(as_tuple=True)
    logits = logits_at(model, batch, rows, places).float()
    losses = functional.cross_entropy(logits, batch["labels"][rows, places], reduction="none")
    zeros = losses.new_zeros(len(batch["labels"]))
    return zeros.index_add(0, rows, losses) / zeros.index_add(0, rows, torch.ones_like(losses)).clamp(min=1)
