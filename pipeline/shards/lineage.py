"""What decides every shard made with one teacher, read off its folder: the part of the key that both halves compare.

And what a student's folder says of the scores that it was trained from.
"""

import json
from pathlib import Path

from pipeline.config.errors import PipelineError
from pipeline.corpus.task import Task
from pipeline.models.folder import load_tokenizer, model_hash, saved_labels, tokenizer_hash
from pipeline.shards.manifest import Key, manifest_hash
from pipeline.shards.schema import FORMAT_VERSION

LINEAGE_FILE = "lineage.json"
"""In a student's folder: what it was made from, and how."""


def lineage(teacher: Path) -> Key:
    """What decides every shard made with this teacher: named hashes of weights and tokenizer, label names, lengths."""
    tokenizer = load_tokenizer(teacher)
    task = Task.read(teacher)
    return {
        "format_version": FORMAT_VERSION,
        "teacher": model_hash(teacher),
        "tokenizer": tokenizer_hash(tokenizer),
        "kind": task.kind,
        "labels": list(saved_labels(teacher)) if task.kind == "classification" else [],
        "max_length": int(tokenizer.model_max_length),
    }


def check_trained_from(student: Path, scores: Path) -> None:
    """Refuse a student of other scores than these: what it is to be tested on may be what it has learnt from.

    Raises:
        PipelineError: it is of others, or no student of this pipeline.
    """
    try:
        origin = json.loads((student / LINEAGE_FILE).read_text(encoding="utf-8"))["scores"]
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise PipelineError(f"{student} has no readable {LINEAGE_FILE}, so it is no student of this pipeline") from cause
    if origin != manifest_hash(scores):
        raise PipelineError(
            f"{student} was trained from other scores than those in {scores}, so it may have learnt from their test rows; "
            "make it again: dvc repro"
        )
