"""The folder of a task's masked language model, which proposes words; or the note that there is none.

The stage words writes it, the augment half reads it. Knows files and loading; not how a model is fitted or its words are used.
"""

from pathlib import Path
from typing import Any

from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings, read_facts
from pipeline.models.architectures import refuse_maskless
from pipeline.models.hashes import tokenizer_hash
from pipeline.models.pretrained import config_of, load_pretrained

WORDS_FILE = "words.json"


class WordsFacts(Settings):
    """``words.json``, written last."""

    model: str | None
    """What names the model that was adopted or fitted; None where no recipe needs one."""
    fitted: bool = False
    perplexity: float | None = None
    """Of a fitted one, on dev: the exponential of the tokens' cross-entropy, in which each text counts alike."""

    def told(self) -> str:
        """For a person."""
        if self.model is None:
            return "no masked language model, since the task asks for none"
        if self.perplexity is None:
            return "adopted as it is"
        return f"fitted, {1 / self.perplexity:.4f} on dev: the probability of a masked token (perplexity {self.perplexity:.3g})"


def words_in(folder: Path) -> WordsFacts:
    """What a folder of ``prepare_words`` holds.

    Raises:
        PipelineError: it is no such folder, or is damaged.
    """
    return read_facts(WordsFacts, folder / WORDS_FILE, f"{folder} has no {WORDS_FILE}; the stage words writes it")


def load_masked_lm(source: str | Path, **settings: Any) -> PreTrainedModel:
    """A masked language model all of whose weights were saved with it; ``settings`` are given to transformers."""
    refuse_maskless(config_of(source, "masked language model"), source)
    model, fresh = load_pretrained(AutoModelForMaskedLM, source, "masked language model", new_head=True, **settings)
    if fresh:
        raise PipelineError(
            f"{source} is not a finished masked language model: it lacks weights that its configuration asks for, or has them "
            f"in another shape ({', '.join(fresh[:3])}); name a checkpoint that was trained to fill masks, or fit this one: "
            "tasks.<task>.words.fit: true"
        )
    return model


def check_tokenizer(source: str | Path, theirs: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase) -> None:
    """Refuse a masked language model whose words are not the teacher's, or which can mask none.

    Args:
        source: where the model lies.
        theirs: its tokenizer.
        ours: the teacher's.
    """
    named = [tokenizer_hash(tokenizer) for tokenizer in (theirs, ours)]
    if named[0] != named[1]:
        raise PipelineError(
            f"the masked language model {source} has another tokenizer ({named[0][:12]}) than the teacher "
            f"{ours.name_or_path} ({named[1][:12]}), so its words are not the teacher's; name a model that shares it"
        )
    if ours.mask_token_id is None:
        raise PipelineError(
            f"the tokenizer of {ours.name_or_path} has no mask token, so no word can be masked; take masked_lm out of "
            "the recipes and set the task's words: null"
        )
