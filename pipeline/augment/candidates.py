"""Replacement of words by proposals of a masked language model, as TinyBERT augments its data.

Follows Algorithm 1 of Jiao et al. (2020, arXiv 1909.10351). The candidates of a word of one piece are the K most probable
pieces for the masked word; those of a word of several pieces are its K nearest neighbours in an embedding space.
Every word is replaced with a given probability by one of its candidates. The authors' code also skips stop words and words with
characters other than a-z, and shows the model the clean sentence beside the masked one; this module does neither.

It differs from the paper in two points. Neighbours are found in the model's own word-embedding table, not in GloVe, by cosine
to the mean of the word's pieces. And every candidate is one piece that is a word by itself, so a text never gets longer.
"""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from pipeline.augment.batches import Arrays, Batches, Columns, Compute, Inputs
from pipeline.augment.recipes import Positions, runs, special_ids
from pipeline.config.errors import PipelineError
from pipeline.config.settings import AugmentSettings
from pipeline.corpus.encoding import Ids, Integers, Types, collate
from pipeline.models.architectures import positions_of
from pipeline.models.folder import ModelFolder
from pipeline.models.forward import freeze, logits_at, pick_device, word_embeddings
from pipeline.models.loading import check_tokenizer, load_masked_lm
from pipeline.shards.reader import Rows

Booleans = npt.NDArray[np.bool_]

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""A decoder's output for bytes that are only part of a character."""

UNSPACED = ("CJK ", "HALFWIDTH KATAKANA", "HIRAGANA", "KATAKANA", "KHMER", "LAO", "MYANMAR", "THAI", "TIBETAN")
"""Prefixes of the Unicode names of characters of scripts without spaces between words."""


class RowCandidates(NamedTuple):
    """The words of one row and their candidates."""

    starts: Ids
    """[words], position of each word's first piece."""
    stops: Ids
    """[words], position after its last piece."""
    ids: Ids
    """[words × K], the K candidates of each word, best first."""


class Candidates(list[RowCandidates]):
    """The candidates of several rows, which pickle as a few arrays."""

    @classmethod
    def of(cls, columns: Iterable[Sequence[Any]]) -> "Candidates":
        """The rows of three columns."""
        return cls(RowCandidates(*row) for row in zip(*columns, strict=True))

    def __reduce__(self) -> tuple[Any, ...]:
        return Candidates.of, ([Arrays(column) for column in zip(*self, strict=True)],)


def replace(
    input_ids: Ids, token_type_ids: Types | None, candidates: RowCandidates, share: float, seed: int
) -> tuple[Ids, Types | None]:
    """One row, each word replaced with probability ``share`` by one of its candidates, drawn uniformly.

    A pure function of its arguments. A word of several pieces becomes one piece, so the row may get shorter. The word itself
    may be among its candidates, as in TinyBERT.
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


def candidates_columns(inputs: Inputs, found: Sequence[RowCandidates]) -> Columns:
    """The columns of a shard of candidates."""
    return {
        "example_id": list(inputs.example_ids),
        "input_ids": list(inputs.input_ids),
        "starts": [row.starts for row in found],
        "stops": [row.stops for row in found],
        "candidates": [row.ids for row in found],
    }


def read_candidates(path: Path) -> Candidates:
    """The candidates in a shard."""
    rows = Rows.in_file(path)
    columns = ("starts", "stops", "candidates")
    return Candidates.of(Arrays.of(rows.lists_at(name, np.arange(len(rows)))) for name in columns)


class MaskedLM:
    """A frozen masked language model on this worker's device."""

    def __init__(
        self, folder: ModelFolder, settings: AugmentSettings, tokenizer: PreTrainedTokenizerBase, half: bool = False
    ) -> None:
        """Load and check the model; ``half`` computes its products in bfloat16."""
        check_tokenizer(folder, tokenizer)
        self._folder, self._settings, self._half = folder, settings, half
        self._device = pick_device()
        model, _ = load_masked_lm(folder)
        self._model = freeze(model).to(self._device)  # type: ignore[arg-type]
        self._longest = positions_of(self._model.config)
        self._table = word_embeddings(self._model)
        self._pieces = Pieces.of(tokenizer)
        self._mask_id, self._pad_id = int(tokenizer.mask_token_id), int(tokenizer.pad_token_id)
        self._barred = _barred(self._pieces.whole, settings.masked_lm.candidates, len(self._table)).to(self._device)
        self.batches = Batches()

    @torch.inference_mode()
    def candidates(self, inputs: Inputs) -> list[RowCandidates]:
        """The words of every row, each with its K candidates, none of which is special or unknown.

        Every word of one piece costs one forward pass of its row, whose masked copy is made when its batch is computed.

        Raises:
            PipelineError: a row exceeds the model's positions, or does not fit into memory.
        """
        if (longest := int(inputs.lengths().max())) > self._longest:
            raise PipelineError(
                f"the masked language model {self._folder.source} has too few positions: it takes at most {self._longest} "
                f"tokens, but a row has {longest}; name another model, or set teacher.max_length to {self._longest} or less"
            )
        spans = [self._pieces.words(ids) for ids in inputs.input_ids]
        rows = np.repeat(np.arange(len(spans)), [len(words) for words in spans])
        starts, stops = np.concatenate(spans).T
        found = np.empty((len(rows), self._settings.masked_lm.candidates), dtype=np.int32)
        one, several = np.flatnonzero(stops - starts == 1), np.flatnonzero(stops - starts > 1)
        directions = functional.normalize(self._table)

        def most_probable(copies: Inputs, positions: Integers, tokens: int) -> Ids:
            return self._most_probable(copies, starts[one[positions]], tokens)

        def nearest(words: Inputs, positions: Integers, tokens: int) -> Ids:
            return self._nearest(words.input_ids, directions)

        def fill(words: Positions, inputs: Inputs, compute: Compute[Ids]) -> None:
            for positions, ids in self.batches.pieces(inputs, self._settings.inference.batch_size, compute):
                found[words[positions]] = ids

        fill(one, inputs.take(rows[one]), most_probable)
        names = [inputs.example_ids[rows[word]] for word in several]
        pieces = [inputs.input_ids[rows[word]][starts[word] : stops[word]] for word in several]
        fill(several, Inputs(names, pieces, None), nearest)
        shares = np.split(found, np.cumsum([len(span) for span in spans])[:-1])
        return [RowCandidates(span[:, 0], span[:, 1], ids.ravel()) for span, ids in zip(spans, shares, strict=True)]

    def _most_probable(self, copies: Inputs, places: Ids, tokens: int) -> Ids:
        """Candidates [rows, K] for one masked place of each row."""
        pairs = zip(copies.input_ids, places, strict=True)
        masked = [np.where(np.arange(len(ids)) == place, self._mask_id, ids) for ids, place in pairs]
        batch = collate(masked, copies.token_type_ids, self._pad_id, tokens)
        there = {name: value.to(self._device) for name, value in batch.items()}
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            logits = logits_at(self._model, there, torch.arange(len(masked)), torch.from_numpy(places).long())
        return self._best(logits.float())

    def _nearest(self, words: Sequence[Ids], directions: Tensor) -> Ids:
        """Candidates [words, K]: the rows of the embedding table that are nearest to the mean of each word's pieces."""
        means = [self._table[torch.tensor(pieces).long().to(self._device)].mean(dim=0) for pieces in words]
        return self._best(functional.normalize(torch.stack(means)) @ directions.T)

    def _best(self, values: Tensor) -> Ids:
        """Ids [rows, K] of the whole words with the highest values [rows, vocabulary]."""
        best = values.masked_fill(self._barred, -torch.inf).topk(self._settings.masked_lm.candidates).indices
        return cast(Ids, best.to(torch.int32).cpu().numpy())


def _barred(whole: Booleans, candidates: int, size: int) -> Tensor:
    """Mask [size] of the ids that cannot be candidates; the model's vocabulary may be larger than the tokenizer's."""
    if whole.sum() < candidates:
        raise PipelineError(
            f"masked_lm.candidates is {candidates}, but the tokenizer has only {whole.sum()} whole words; set it lower"
        )
    barred = torch.ones(size, dtype=torch.bool)
    barred[np.flatnonzero(whole)] = False
    return barred


@dataclass(frozen=True)
class Pieces:
    """How the ids of a vocabulary form words, as booleans [ids]."""

    begins: Booleans
    """Begins a word at any position."""
    apart: Booleans
    """Is a word of its own, but joins a lone space before it: added tokens and, if spaces are marked, punctuation and pieces
    of scripts without spaces."""
    blank: Booleans
    """Is a lone space, which begins a word."""
    whole: Booleans
    """Can be a word by itself: readable, and neither special nor an added token."""
    special: frozenset[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Pieces":
        """Read a tokenizer's vocabulary and rules; raises ``PipelineError`` if they do not mark where words begin."""
        (continuing, space), decoder = _marks(tokenizer), tokenizer.backend_tokenizer.decoder
        vocabulary, added = tokenizer.get_vocab(), {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
        known = added - {tokenizer.unk_token_id}
        begins, apart, blank, whole = np.zeros((4, max(vocabulary.values()) + 1), dtype=np.bool_)
        for piece, number in vocabulary.items():
            text = (piece if decoder is None else str(decoder.decode([piece]))).strip()
            begins[number] = piece.startswith(space) and not (continuing and piece.startswith(continuing))
            unspaced = not text.isascii() and any(unicodedata.name(sign, "").startswith(UNSPACED) for sign in text)
            apart[number] = number in known or (space != "" and (_is_punctuation(text) or unspaced))
            blank[number] = piece == space
            whole[number] = (begins[number] or apart[number]) and text != "" and BROKEN not in text and number not in added
        return cls(begins, apart, blank, whole, special_ids(tokenizer))

    def words(self, input_ids: Ids) -> Ids:
        """First position of every word of a row and the position after its last, [words, 2]; special tokens end words."""
        here, before = input_ids[1:], input_ids[:-1]
        behind = self.begins[here] | ((self.apart[here] | self.apart[before]) & ~self.blank[before])
        spans: list[tuple[int, int]] = []
        for start, stop in runs(input_ids, self.special):
            starts = [start, *(start + 1 + np.flatnonzero(behind[start : stop - 1]))]
            spans += zip(starts, [*starts[1:], stop], strict=True)
        return np.array(spans, dtype=np.int32).reshape(-1, 2)


def _marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Prefix of pieces that continue a word, and prefix of pieces that begin one; "" if there is none."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {"model": {"type": "none"}}
    around = json.dumps([rules.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")], ensure_ascii=False)
    if rules["model"]["type"] == "WordLevel":
        return "", ""
    if continuing := rules["model"].get("continuing_subword_prefix"):
        return continuing, ""
    for sign, space in (("▁", "▁"), ('"ByteLevel"', "Ġ")):
        if sign in around:
            return "", space
    raise PipelineError(
        f"masked-LM replacement cannot tell where words begin in the tokenizer of {tokenizer.name_or_path}: it knows word "
        "pieces (##), byte-level pieces (Ġ), SentencePiece (▁) and whole words; choose another augmentation"
    )


def _is_punctuation(text: str) -> bool:
    return text != "" and all(character != BROKEN and unicodedata.category(character)[0] in "PS" for character in text)
