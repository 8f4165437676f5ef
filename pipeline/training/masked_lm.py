"""The masked language model of a task: fitted to its train texts, adopted as it is, or none. Knows texts and one model."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.corpus.encoding import Batch
from pipeline.corpus.task import Floats, Split, Task
from pipeline.models.architectures import positions_of, refuse_maskless
from pipeline.models.forward import word_embeddings
from pipeline.models.hashes import source_hash
from pipeline.models.pretrained import config_of, load_pretrained, load_tokenizer
from pipeline.models.soundness import check_vocabulary
from pipeline.store.files import folder_written_whole, write_json
from pipeline.training.callbacks import NO_STATES, Conduct
from pipeline.training.masking import FitSettings, loss_of, masked_rows
from pipeline.training.proposing import WORDS_FILE, WordsFacts, check_tokenizer, load_masked_lm
from pipeline.training.trainer import best_epoch, fine_tune, write_history

FITTED_ON: tuple[Split, Split] = ("train", "dev")
"""What a masked language model learns from, and what chooses its best epoch."""

MASKED_HEADS = ("ForMaskedLM", "ForPreTraining")
"""How transformers' classes end that fill masks."""


class WordsSettings(Settings):
    """Which masked language model proposes words for a task."""

    model: str
    """Hub id or folder with the teacher's tokenizer: any pretrained encoder to fit, or a finished masked language model."""
    fit: bool
    """Whether it is fitted to the task's train texts; false adopts it as it is."""


def prepare_words(
    prepared: Path,
    teacher: str,
    max_length: int,
    words: WordsSettings | None,
    settings: FitSettings,
    out: Path,
    conduct: Conduct = NO_STATES,
) -> WordsFacts:
    """Write the masked language model of a task to ``out``, or a note that there is none.

    Args:
        prepared: what ``prepare`` wrote.
        teacher: the model that the teacher is made from, whose tokenizer is wanted.
        max_length: tokens that a text is cut to, as the teacher's.
        words: the model, or None.
        settings: how it is fitted.
        out: replaced as a whole.
        conduct: how the fit is run.

    Raises:
        PipelineError: the model cannot be loaded, has another tokenizer or too few positions, or is none that fills masks.
    """
    if words is None:
        facts = WordsFacts(model=None)
        with folder_written_whole(out) as folder:
            write_json(folder / WORDS_FILE, facts.model_dump())
        return facts
    check_words(words, teacher, max_length)
    tokenizer, named = load_tokenizer(words.model), source_hash(words.model)
    if words.fit:
        model, history = _fitted(prepared, words.model, tokenizer, max_length, settings, conduct)
    else:
        model, history = load_masked_lm(words.model), []
    perplexity = 1 / best_epoch(history)["dev"] if history else None
    facts = WordsFacts(model=named, fitted=words.fit, perplexity=perplexity)
    with folder_written_whole(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_history(folder, history)
        write_json(folder / WORDS_FILE, facts.model_dump())
    return facts


def check_words(words: WordsSettings, teacher: str, max_length: int) -> None:
    """Refuse a masked language model that cannot serve a teacher; no weight is read.

    Raises:
        PipelineError: it is not there or not whole, of another type, has another tokenizer, too few positions or too small a
            vocabulary.
    """
    config, tokenizer = config_of(words.model, "masked language model"), load_tokenizer(words.model)
    check_tokenizer(words.model, tokenizer, load_tokenizer(teacher))
    refuse_maskless(config, words.model)
    if (longest := positions_of(config)) < max_length:
        raise PipelineError(
            f"{words.model} takes at most {longest} tokens, but teacher.max_length is {max_length}; name another model"
        )
    kinds = getattr(config, "architectures", None) or []
    if not words.fit and kinds and not any(kind.endswith(MASKED_HEADS) for kind in kinds):
        raise PipelineError(
            f"{words.model} is not a finished masked language model but a {kinds[0]}; name a checkpoint that was trained to "
            "fill masks, or fit this one: tasks.<task>.words.fit: true"
        )
    check_vocabulary(words.model, tokenizer)
    if words.fit:
        _encoder(words.model, device_map="meta")
    else:
        load_masked_lm(words.model, device_map="meta")


def _fitted(
    prepared: Path,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    settings: FitSettings,
    conduct: Conduct,
) -> tuple[PreTrainedModel, list[dict[str, float]]]:
    set_seed(settings.seed % 2**32)  # what has no saved weights starts from random ones
    model = _with_head(source)
    known = len(word_embeddings(model))  # a tokenizer may name tokens beyond them that no text has
    train, dev = (masked_rows(prepared, split, tokenizer, known, max_length, settings) for split in FITTED_ON)

    def measured(model: PreTrainedModel, batch: Batch) -> Tensor:
        """Log-probability of the tokens asked for, mean over those of each row, [rows, 1]."""
        return -loss_of(model, batch).unsqueeze(1)

    def probability(found: Floats) -> float:
        """Geometric mean over rows: the inverse of the perplexity."""
        return math.exp(found.mean())

    name = f"words {Task.read(prepared).name}"
    fit = fine_tune(name, model, train, dev, loss_of, probability, settings, conduct, answer=measured)
    return model, fit.history


def _with_head(source: str) -> PreTrainedModel:
    """An encoder with a head that fills masks.

    Square layers of it that were not saved begin as the identity: where, as in BERT, one layer comes before a projection to the
    word embeddings, the head begins by asking which word the output is like.
    """
    model, fresh = _encoder(source)
    with torch.no_grad():
        for weight in (model.get_parameter(name) for name in fresh):
            if weight.dim() == 2 and weight.shape[0] == weight.shape[1]:
                torch.nn.init.eye_(weight)
    return model


def _encoder(source: str, **settings: Any) -> tuple[PreTrainedModel, list[str]]:
    """An encoder as a masked language model, and the names of the weights of its head that are made up here."""
    model, fresh = load_pretrained(AutoModelForMaskedLM, source, "masked language model", new_head=True, **settings)
    if body := [name for name in fresh if name.startswith(f"{model.base_model_prefix}.")]:
        raise PipelineError(
            f"{source} is not a finished encoder: it lacks weights that its configuration asks for, or has them in another "
            f"shape ({', '.join(body[:3])}); name a checkpoint of this architecture"
        )
    return model, fresh
