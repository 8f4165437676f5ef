"""From jobs to a complete set: take what the store has, have the rest computed, publish with the manifest last.

Knows jobs, workers and the store; not what a pass is for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.augment.jobs import ShardJob
from pipeline.augment.progress import Counter
from pipeline.augment.workers import Workers
from pipeline.config.errors import PipelineError
from pipeline.corpus.task import Task
from pipeline.models.folder import load_tokenizer
from pipeline.shards.manifest import Coding, Key, Manifest, Receipt, ShardEntry
from pipeline.shards.schema import FORMAT_VERSION
from pipeline.shards.store import ShardStore
from pipeline.store.files import folder_written_whole


@dataclass(frozen=True)
class Stocktaking:
    """Which jobs' shards the store has."""

    receipts: list[Receipt | None]
    """One a job; None where the shard is to be computed."""
    damaged: list[str]
    """Names of jobs whose shard was finished once and is not whole any more."""

    @property
    def missing(self) -> list[int]:
        """Positions of the jobs that are still to be done."""
        return [number for number, receipt in enumerate(self.receipts) if receipt is None]


def take_stock(jobs: Sequence[ShardJob], store: ShardStore) -> Stocktaking:
    """Look for the shard of every job; each is verified by its sha256."""
    receipts = [store.find(job.key) for job in jobs]
    pairs = zip(jobs, receipts, strict=True)
    return Stocktaking(receipts, [job.name for job, receipt in pairs if receipt is None and store.has_receipt(job.key)])


def finish(name: str, jobs: Sequence[ShardJob], stock: Stocktaking, workers: Workers) -> list[Receipt]:
    """A receipt for every job: from the store where it has the shard, else from the workers."""
    if stock.damaged:
        print(f"{name}: damaged in the store, computed again: {', '.join(stock.damaged)}", flush=True)
    there = len(jobs) - len(stock.missing)
    print(f"{name}: {len(jobs)} shards, {there} in the store, {len(stock.missing)} to compute", flush=True)
    receipts = list(stock.receipts)
    if stock.missing:
        numbers = {id(jobs[number]): number for number in stock.missing}
        with Counter(name, len(stock.missing), "shards") as counter:
            for job, done in workers.run([jobs[number] for number in stock.missing]):
                receipts[numbers[id(job)]] = done.result
                for note in done.notes:
                    print(f"{job.name}: {note}", flush=True)
                counter.advance(done.result.rows)
    return [receipt for receipt in receipts if receipt is not None]


def manifest_of(
    task: Task,
    teacher: Path,
    key: Key,
    variants: int,
    coding: Coding | None,
    details: dict[str, object],
    jobs: Sequence[ShardJob],
    receipts: Sequence[Receipt],
) -> Manifest:
    """The list of a complete set; ``key`` is what all its shards share."""
    tokenizer = load_tokenizer(teacher)
    entries = [
        ShardEntry(
            file=f"{job.split}-variant-{job.variant}-{job.partition:05d}.arrow",
            split=job.split,
            variant=job.variant,
            partition=job.partition,
            receipt=receipt,
        )
        for job, receipt in zip(jobs, receipts, strict=True)
    ]
    return Manifest(
        format_version=FORMAT_VERSION,
        content=key["content"],
        task=task,
        key=key,
        token_types="token_type_ids" in tokenizer.model_input_names,
        pad_token_id=int(tokenizer.pad_token_id),
        coding=coding,
        variants=variants,
        details=details,
        shards=tuple(entries),
    )


def publish(out: Path, store: ShardStore, manifest: Manifest) -> Manifest:
    """Put exactly the shards of the manifest into ``out``, the manifest last.

    Raises:
        PipelineError: the folder cannot be written; what was there before stays as it was.
    """
    try:
        with folder_written_whole(out) as folder:
            for entry in manifest.shards:
                store.place(entry.receipt.key, folder / entry.file)
            manifest.save(folder)
    except OSError as cause:
        raise PipelineError(f"{out} cannot be written: {cause.strerror or cause}; all shards are kept in the store") from cause
    print(f"{out}: {len(manifest.shards)} shards, {sum(e.receipt.bytes for e in manifest.shards) / 1e6:,.1f} MB", flush=True)
    return manifest
