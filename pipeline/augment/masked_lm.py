"""Words replaced by what a masked language model puts in their place, as TinyBERT augments its data.

Follows Algorithm 1 of Jiao et al. (2020, arXiv 1909.10351): a word of one piece is masked and the model's K most probable
words are its candidates; a word of several pieces has K near neighbours in an embedding space. Then every word is replaced by
one of its candidates with a given probability. The authors' programme goes further than their algorithm: it spares stop words
and whatever is not a-z, and shows the model the untouched sentence beside the masked one. Neither is done here.

Two things differ from the paper. Its neighbours are GloVe's; our stand-in is the model's own word-embedding table, by cosine to
the mean of the word's pieces. And a candidate is always one piece that is a word by itself, so a text never gets longer.

Knows a masked language model and the tokenizer it shares with the teacher; not shards or stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from pipeline.augment.batches import half, out_of_memory
from pipeline.augment.text_edits import Positions, Share
from pipeline.augment.words import Booleans, Pieces
from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.corpus.encoding import Ids, Types, collate, length_buckets
from pipeline.models.architectures import positions_of
from pipeline.models.folder import load_tokenizer
from pipeline.models.forward import freeze, logits_at, pick_device, word_embeddings
from pipeline.models.loading import load_masked_lm
from pipeline.models.soundness import check_tokenizer


class MaskedLMSettings(Settings):
    """How many of a masked language model's words are taken; which model is said by the task, in ``words``."""

    replace: Share
    """Probability that a word is replaced; p_t of TinyBERT, there 0.4."""
    candidates: Annotated[int, Field(ge=1)]
    """Candidates a word; K of TinyBERT, there 15."""
    batch_rows: Annotated[int, Field(ge=1)]
    """Masked copies of rows a batch."""


@dataclass(frozen=True)
class RowCandidates:
    """The words of one row and what may stand in their place."""

    starts: Ids
    """[words], the position of each word's first piece."""
    stops: Ids
    """[words], the position behind its last piece."""
    ids: Ids
    """[words × K], for each word its K candidates, best first."""


def replace(
    input_ids: Ids, token_type_ids: Types | None, candidates: RowCandidates, share: float, seed: int
) -> tuple[Ids, Types | None]:
    """One row whose words are each, with probability ``share``, replaced by one of their candidates, all equally likely.

    A function of its arguments alone. A word of several pieces becomes one piece, so the row may get shorter, never longer;
    token types follow their tokens. The word itself may be among its candidates, as in TinyBERT.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    words = len(candidates.starts)
    each = len(candidates.ids) // max(words, 1)
    chosen = generator.random(words) < share
    drawn = candidates.ids[np.arange(words) * each + (generator.random(words) * each).astype(np.int64)]
    ids, kept = input_ids.copy(), np.ones(len(input_ids), dtype=np.bool_)
    ids[candidates.starts[chosen]] = drawn[chosen]
    for start, stop in zip(candidates.starts[chosen], candidates.stops[chosen], strict=True):
        kept[start + 1 : stop] = False
    return ids[kept], None if token_type_ids is None else token_type_ids[kept]


class MaskedLM:
    """A frozen masked language model on this worker's device, which proposes words."""

    def __init__(
        self, folder: Path, settings: MaskedLMSettings, tokenizer: PreTrainedTokenizerBase, half: bool = False
    ) -> None:
        """Load the model.

        Args:
            folder: where the model lies.
            settings: how many candidates it gives.
            tokenizer: the teacher's.
            half: whether its products are computed in bfloat16.

        Raises:
            PipelineError: it cannot be loaded, is not finished, has another tokenizer, or too few words.
        """
        check_tokenizer(folder, load_tokenizer(folder), tokenizer)
        self._folder, self._settings, self._half = folder, settings, half
        self._device = pick_device()
        self._model = freeze(load_masked_lm(folder)).to(self._device)  # type: ignore[arg-type]
        self._longest = positions_of(self._model.config)
        self._table = word_embeddings(self._model)
        self._pieces = Pieces.of(tokenizer)
        self._mask_id, self._pad_id = int(tokenizer.mask_token_id), int(tokenizer.pad_token_id)
        self._barred = _barred(self._pieces.whole, settings.candidates, len(self._table)).to(self._device)

    @torch.inference_mode()
    def candidates(self, input_ids: Sequence[Ids], token_type_ids: Sequence[Types] | None) -> list[RowCandidates]:
        """The words of every row, each with its K candidates, none of them special or unknown.

        Every word of one piece costs one pass of its row. Copies of all rows with one word masked share batches of like
        length, and a batch is built when it is its turn, so memory does not grow with the rows.

        Raises:
            PipelineError: a row is longer than the model takes.
        """
        self._refuse_longer(input_ids)
        spans = [self._pieces.words(ids) for ids in input_ids]
        rows = np.repeat(np.arange(len(spans)), [len(words) for words in spans])
        starts, stops = np.concatenate(spans).T
        found = np.empty((len(rows), self._settings.candidates), dtype=np.int32)
        one, several = np.flatnonzero(stops - starts == 1), np.flatnonzero(stops - starts > 1)
        for words in self._batches(one, np.array([len(ids) for ids in input_ids])[rows]):
            types = None if token_type_ids is None else [token_type_ids[row] for row in rows[words]]
            found[words] = self._most_probable([input_ids[row] for row in rows[words]], types, starts[words])
        directions = functional.normalize(self._table)
        for words in self._batches(several, stops - starts):
            pieces = [input_ids[rows[word]][starts[word] : stops[word]] for word in words]
            found[words] = self._nearest(pieces, directions)
        shares = np.split(found, np.cumsum([len(words) for words in spans])[:-1])
        return [RowCandidates(words[:, 0], words[:, 1], ids.ravel()) for words, ids in zip(spans, shares, strict=True)]

    def _refuse_longer(self, input_ids: Sequence[Ids]) -> None:
        longest = max(len(ids) for ids in input_ids)
        if longest > self._longest:
            raise PipelineError(
                f"the masked language model {self._folder} has too few positions: it takes at most {self._longest} "
                f"tokens, but a row has {longest}; name another model, or set teacher.max_length to {self._longest} or less"
            )

    def _batches(self, words: Positions, lengths: npt.NDArray[np.integer[Any]]) -> list[Positions]:
        """Words in batches of like length; ``lengths`` are those of all words."""
        return [words[chosen] for chosen in length_buckets(lengths[words], self._settings.batch_rows)]

    def _most_probable(self, input_ids: Sequence[Ids], token_type_ids: Sequence[Types] | None, positions: Ids) -> Ids:
        """Candidates [rows, K] for the word at one position of each row, which is masked; in halves where memory runs out."""
        try:
            return self._of_masked(input_ids, token_type_ids, positions)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or len(input_ids) == 1:
                raise
        middle = half(len(input_ids))
        parts = [slice(middle), slice(middle, None)]
        types = token_type_ids
        found = [self._most_probable(input_ids[part], types and types[part], positions[part]) for part in parts]
        return np.concatenate(found)

    def _of_masked(self, input_ids: Sequence[Ids], token_type_ids: Sequence[Types] | None, positions: Ids) -> Ids:
        """The same in one batch."""
        pairs = zip(input_ids, positions, strict=True)
        masked = [np.where(np.arange(len(ids)) == position, self._mask_id, ids) for ids, position in pairs]
        batch = collate(masked, token_type_ids, self._pad_id)
        rows, places = torch.arange(len(masked)), torch.from_numpy(positions).long()
        there = {name: value.to(self._device) for name, value in batch.items()}
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            logits = logits_at(self._model, there, rows, places)
        return self._best(logits.float())

    def _nearest(self, words: Sequence[Ids], directions: Tensor) -> Ids:
        """Candidates [words, K]: the nearest rows of the embedding table to the mean of each word's pieces, by cosine."""
        means = [self._table[torch.tensor(pieces).long().to(self._device)].mean(dim=0) for pieces in words]
        return self._best(functional.normalize(torch.stack(means)) @ directions.T)

    def _best(self, scores: Tensor) -> Ids:
        """Ids [rows, K] of the highest scores [rows, vocabulary] among whole words."""
        best = scores.masked_fill(self._barred, -torch.inf).topk(self._settings.candidates).indices
        return cast(Ids, best.to(torch.int32).cpu().numpy())


def _barred(whole: Booleans, candidates: int, size: int) -> Tensor:
    """Where an id of the model's vocabulary, which may be larger than the tokenizer's, is never a candidate, [size]."""
    if whole.sum() < candidates:
        raise PipelineError(
            f"{candidates} candidates a word are asked for, but the tokenizer has only {whole.sum()} whole words; ask for fewer"
        )
    barred = torch.ones(size, dtype=torch.bool)
    barred[np.flatnonzero(whole)] = False
    return barred
