"""Whether a saved model fits its tokenizer and says what its answers mean. Reads configurations and tokenizers, no weight."""

import json
import re
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from pipeline.config.errors import PipelineError
from pipeline.corpus.task import label_name
from pipeline.models.architectures import IDENTITY, activation_of, labels_of
from pipeline.models.hashes import ROLES
from pipeline.models.pretrained import config_of

GENERIC = re.compile(r"LABEL_\d+")
"""What transformers calls a label that nobody has named."""

NAMED = 3
"""Tokens or labels that a sentence names."""


def check_vocabulary(source: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that gives ids for which its model has no embedding.

    Added special tokens without a role may lie outside, as Gemma's for images do: no ordinary text has them, and rows that do
    are found when a corpus is prepared.

    Raises:
        PipelineError: its vocabulary is larger than the model's, or an added token or the padding token lies outside.
    """
    known = int(config_of(source).get_text_config().vocab_size)
    if tokenizer.vocab_size > known:
        raise PipelineError(f"{source} knows {known} tokens, but its tokenizer gives {tokenizer.vocab_size}")
    if int(tokenizer.pad_token_id) >= known:
        raise PipelineError(
            f"{source} knows {known} tokens, but its tokenizer pads with the id {tokenizer.pad_token_id}; "
            "name one of its own as pad_token in its tokenizer_config.json"
        )
    roles = {getattr(tokenizer, f"{role}_token_id") for role in ROLES}
    added = tokenizer.added_tokens_decoder
    outside = sorted(number for number in added if number >= known)
    if lost := [added[number].content for number in outside if not added[number].special or number in roles]:
        raise PipelineError(
            f"{source} has embeddings for {known} tokens, but tokens were added to its tokenizer that have none "
            f"({', '.join(lost[:NAMED])}); call resize_token_embeddings and fine-tune, or save the tokenizer without them"
        )


def check_token_types(source: str | Path, tokenizer: PreTrainedTokenizerBase, pair: bool) -> None:
    """Refuse a tokenizer that gives token types for which its model has no embedding.

    Raises:
        PipelineError: it does, for a text or, where ``pair``, for a pair of texts.
    """
    known = getattr(config_of(source), "type_vocab_size", None)
    if not known or "token_type_ids" not in tokenizer.model_input_names:
        return
    most = max(tokenizer("a", "b" if pair else None)["token_type_ids"], default=0)
    if most >= known:
        raise PipelineError(
            f"{source} has type_vocab_size: {known}, but its tokenizer gives {'a pair' if pair else 'a text'} the token type "
            f"{most}; save the tokenizer that the model was trained with beside it, or one whose model_input_names are "
            '["input_ids", "attention_mask"]'
        )


def check_label_names(source: str | Path) -> None:
    """Refuse a classifier whose configuration does not say which label each logit is of.

    Raises:
        PipelineError: names are missing, no texts, or given twice, or its two maps contradict each other.
    """
    config = config_of(source, "classifier")
    names, numbers = config.id2label or {}, config.label2id or {}
    shown = json.dumps(names)
    if sorted(names) != list(range(len(names))) or not all(map(_is_name, names.values())):
        raise PipelineError(
            f"{source} does not name its labels: id2label in its config.json is {shown}; it must map each number from 0 to a "
            'name in text, such as {"0": "negative", "1": "positive"}'
        )
    if len({*labels_of(config)}) < len(names):
        raise PipelineError(f"{source} gives two labels one name: id2label in its config.json is {shown}")
    inverse = {label_name(name): str(number) for number, name in names.items()}
    said = {label_name(str(name)): str(number) for name, number in numbers.items()}
    if said != inverse and not all(map(GENERIC.fullmatch, said)):
        raise PipelineError(
            f"{source} contradicts itself in its config.json: id2label is {shown}, but label2id is "
            f"{json.dumps(numbers)}; make one the inverse of the other"
        )


def _is_name(value: object) -> bool:
    """Whether a value names a label: a text that says something and can be written, as half a surrogate pair cannot."""
    try:
        return isinstance(value, str) and bool(value.strip()) and bool(value.encode())
    except UnicodeEncodeError:
        return False


def check_values(source: str | Path) -> None:
    """Refuse a regression whose logit is not its answer.

    Raises:
        PipelineError: something comes behind the head, or transformers would serve the logit's sigmoid.
    """
    config = config_of(source, "classifier")
    activation, said = activation_of(config), config.problem_type == "regression"
    if not activation and said:
        return
    reason = (
        f"is a cross-encoder that applies a {activation} to its logit, and a student is trained on logits"
        if activation
        else "has one output and does not say problem_type: regression, so transformers.pipeline serves its sigmoid"
    )
    missing = [f'"activation_fn": "{IDENTITY}"'] if activation else []
    missing += [] if said else ['"problem_type": "regression"']
    raise PipelineError(
        f"{source} {reason}; if the labels are logits, write {' and '.join(missing)} into its config.json, else set "
        "teacher.fine_tune: true, which fits the head to the labels"
    )
