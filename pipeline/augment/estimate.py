"""The shards and bytes that a pass would add to the store; reads the store and writes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.augment.jobs import ShardJob
from pipeline.augment.plans import Augmentation, soft_label_jobs
from pipeline.config.errors import PipelineError
from pipeline.config.settings import CodecName, InferenceSettings, RuntimeSettings
from pipeline.corpus.task import Task
from pipeline.models.folder import ModelFolder
from pipeline.shards.codec import CODECS
from pipeline.store.store import Store, open_store

UNKNOWN_EPSILON = 0.123456789
"""In place of an epsilon that is not known yet; no shard of the store has it."""

SCALE_BYTES, ID_BYTES, TYPE_BYTES, LOGIT_BYTES, ROW_BYTES, SHARD_BYTES = 4, 4, 1, 4, 50, 5500
"""Of a token's scale, id and type, a logit, a row's other columns, and a file's metadata."""


@dataclass(frozen=True)
class Estimate:
    """What a pass would add to the store."""

    name: str
    rows: int
    """Examples of the splits."""
    variants: int
    shards: int
    missing: int
    missing_rows: int
    """Rows of the missing shards."""
    codec: CodecName = "int8"
    bytes: dict[CodecName, int] = field(default_factory=dict)
    """Of the missing shards, by codec; empty for soft labels."""

    def lines(self) -> list[str]:
        """For the user."""
        sizes = [f"{name} {_size(size)}{' (chosen)' if name == self.codec else ''}" for name, size in self.bytes.items()]
        found = [
            f"{self.name}: nothing is written, this is the plan",
            f"  examples         {self.rows:,}" + (f" in {self.variants} variants" if self.variants else ""),
            f"  shards           {self.shards:,}: {self.shards - self.missing:,} in the store, {self.missing:,} to compute",
            f"  rows to compute  {self.missing_rows:,}",
        ]
        return found + ([f"  bytes to write   {', '.join(sizes)}"] if sizes else [])


def absent(jobs: Sequence[ShardJob], store: Store) -> list[ShardJob]:
    """The jobs whose shards are not in the store; verifies no hash and leaves no trace."""
    held = store.peek_all([job.key for job in jobs])
    return [job for job, entry in zip(jobs, held, strict=True) if entry is None]


def soft_label_estimate(prepared: Path, teacher: Path, settings: InferenceSettings, runtime: RuntimeSettings) -> Estimate:
    """What ``soft_label`` would add to the store."""
    _, jobs = soft_label_jobs(prepared, ModelFolder(teacher), settings)
    missing = absent(jobs, open_store(runtime))
    rows, missing_rows = (sum(job.rows for job in some) for some in (jobs, missing))
    return Estimate(f"soft_label {Task.read(prepared).name}", rows, 0, len(jobs), len(missing), missing_rows)


def augment_estimate(plan: Augmentation, runtime: RuntimeSettings) -> Estimate:
    """What ``augment`` would add to the store: all perturbed variants as long as epsilon is unknown."""
    store = open_store(runtime)
    known = plan.known_epsilon(store)
    jobs = plan.jobs(UNKNOWN_EPSILON if known is None else known)
    missing = absent(jobs, store)
    return Estimate(
        name=plan.name,
        rows=sum(entry.receipt.rows for entry in plan.entries()),
        variants=plan.settings.variants,
        shards=len(jobs),
        missing=len(missing),
        missing_rows=sum(job.rows for job in missing),
        codec=plan.settings.codec,
        bytes=sizes_of(plan, missing, store),
    )


def check_room(plan: Augmentation, missing: Sequence[ShardJob], store: Store, most: int | None) -> None:
    """Raise a ``PipelineError`` if these jobs add more than ``most`` bytes to the store; it states the size by codec."""
    if most is None:
        return
    sizes = sizes_of(plan, missing, store)
    if (size := sizes.pop(plan.settings.codec)) > most:
        others = ", ".join(f"{codec} {_size(other)}" for codec, other in sizes.items())
        raise PipelineError(
            f"{plan.name} would write about {_size(size)}, runtime.max_bytes allows {_size(most)}; nothing was computed. "
            f"With another codec it would be: {others}"
        )


def sizes_of(plan: Augmentation, jobs: Sequence[ShardJob], store: Store) -> dict[CodecName, int]:
    """About how many bytes these jobs and their missing candidates add to the store with each codec.

    The candidates' size is an upper bound, as if every token were a word.
    """
    entries = plan.entries()
    unknown = [entries[job.partition].receipt for job in absent(plan.candidates(jobs), store)]
    a_token = ID_BYTES * (plan.settings.masked_lm.candidates + 3)
    words = sum(receipt.tokens * a_token + receipt.rows * ROW_BYTES + SHARD_BYTES for receipt in unknown)
    return {codec: bytes_of(plan, jobs, codec) + words for codec in CODECS}


def bytes_of(plan: Augmentation, jobs: Sequence[ShardJob], codec: CodecName) -> int:
    """About how many bytes the shards of these jobs take."""
    manifest, entries = plan.source.manifest, plan.entries()
    a_token = ID_BYTES + (TYPE_BYTES if manifest.token_types else 0)
    coded = plan.teacher.embedding_width * CODECS[codec].bits / 8 + SCALE_BYTES
    total = 0.0
    for job in jobs:
        entry, recipe = entries[job.partition], plan.settings.recipe(job.variant)
        receipt = entry.receipt
        total += receipt.tokens * (a_token + (coded if "perturb" in recipe else 0.0))
        total += receipt.rows * (ROW_BYTES + 2 * LOGIT_BYTES * manifest.task.outputs) + SHARD_BYTES
    return round(total)


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"
