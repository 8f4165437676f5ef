"""What decides every shard made with one teacher, read off its folder: the part of the key that both halves compare."""

from pathlib import Path

from pipeline.models import load_tokenizer, model_hash, saved_labels, tokenizer_hash
from pipeline.shards.manifest import Key
from pipeline.shards.schema import FORMAT_VERSION
from pipeline.tasks import Task


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
