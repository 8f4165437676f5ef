"""The shards and bytes that a pass would add to the store; reads the store and writes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.augment.plans import Augmentation, soft_label_jobs
from pipeline.augment.variant_jobs import VariantJob
from pipeline.config.errors import PipelineError
from pipeline.config.settings import AugmentSettings, CodecName, InferenceSettings, RuntimeSettings
from pipeline.corpus.encoding import Integers
from pipeline.corpus.task import Task
from pipeline.models.folder import ModelFolder
from pipeline.shards.codec import CODECS
from pipeline.store.store import Store

UNKNOWN_EPSILON = 0.123456789
"""Stands for a epsilon that is not known yet; no shard of the store has it."""

SCALE_BYTES, ID_BYTES, TYPE_BYTES, LOGIT_BYTES, ROW_BYTES, SHARD_BYTES = 4, 4, 1, 4, 64, 6100
"""Of a token's scale, id and type, of a logit, of a row's other columns, and of a file's metadata."""

NAME_BYTES = 16
"""Of a partner's id."""


@dataclass(frozen=True)
class Estimate:
    """What the store lacks of a pass."""

    name: str
    rows: int
    """Of the split or splits, each once."""
    variants: int
    shards: int
    missing: int
    missing_rows: int
    """Rows of the missing shards."""
    codec: CodecName = "int8"
    bytes: dict[CodecName, int] = field(default_factory=dict)
    """Of the missing shards, by codec; empty for shards without perturbations."""

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


def soft_label_estimate(prepared: Path, teacher: Path, settings: InferenceSettings, runtime: RuntimeSettings) -> Estimate:
    """What the store lacks of ``soft_label``."""
    store = Store(Path(runtime.store).resolve())
    _, jobs = soft_label_jobs(prepared, ModelFolder(teacher), settings)
    missing = [job for job in jobs if store.peek(job.key) is None]
    rows, missing_rows = (sum(job.place.stop - job.place.start for job in some) for some in (jobs, missing))
    return Estimate(f"soft_label {Task.read(prepared).name}", rows, 0, len(jobs), len(missing), missing_rows)


def augment_estimate(
    soft_labels: Path,
    teacher: Path,
    settings: AugmentSettings,
    runtime: RuntimeSettings,
    surrogate: Path | None = None,
    masked_lm: Path | None = None,
) -> Estimate:
    """What the store lacks of ``augment``: every perturbed variant while the epsilon is unknown."""
    opened = ModelFolder(teacher)
    plan = Augmentation.of(soft_labels, opened, settings, surrogate, masked_lm)
    store = Store(Path(runtime.store).resolve())
    known = known_epsilon(plan, store)
    jobs = plan.jobs(UNKNOWN_EPSILON if known is None else known, store)
    missing = [job for job in jobs if store.peek(job.key) is None]
    return Estimate(
        name=plan.name,
        rows=sum(entry.receipt.rows for entry in plan.entries()),
        variants=settings.variants,
        shards=len(jobs),
        missing=len(missing),
        missing_rows=sum(job.soft_labels.entry.receipt.rows for job in missing),
        codec=settings.codec,
        bytes=sizes_of(plan, missing, store, opened.embedding_width),
    )


def check_room(plan: Augmentation, missing: Sequence[VariantJob], store: Store, most: int | None, width: int) -> None:
    """Reject what would add more than ``most`` bytes to the store.

    Raises:
        PipelineError: states the size, and that of the other codecs.
    """
    if most is None:
        return
    sizes = sizes_of(plan, missing, store, width)
    if (size := sizes[plan.settings.codec]) > most:
        others = ", ".join(f"{codec} {_size(held)}" for codec, held in sizes.items() if codec != plan.settings.codec)
        raise PipelineError(
            f"{plan.name} would write about {_size(size)}, runtime.max_bytes allows {_size(most)}; nothing was computed. "
            f"With another codec it would be: {others}"
        )


def sizes_of(plan: Augmentation, jobs: Sequence[VariantJob], store: Store, width: int) -> dict[CodecName, int]:
    """About how many bytes these jobs and their missing candidates add to the store by each codec."""
    words = candidates_bytes(plan, jobs, store)
    return {codec: bytes_of(plan, jobs, codec, width) + words for codec in CODECS}


def candidates_bytes(plan: Augmentation, jobs: Sequence[VariantJob], store: Store) -> int:
    """An upper bound for the bytes of the candidates that these jobs lack: as if every token were a word."""
    unknown = [job.soft_labels.entry.receipt for job in plan.candidates(jobs) if store.peek(job.key) is None]
    if not unknown:
        return 0
    a_token = ID_BYTES * (plan.settings.masked_lm.candidates + 3)
    return sum(receipt.tokens * a_token + receipt.rows * ROW_BYTES + SHARD_BYTES for receipt in unknown)


def bytes_of(plan: Augmentation, jobs: Sequence[VariantJob], codec: CodecName, width: int) -> int:
    """About how many bytes the shards of these jobs take."""
    manifest = plan.source.manifest
    a_token = ID_BYTES + (TYPE_BYTES if manifest.token_types else 0)
    coded = width * CODECS[codec].bits / 8 + SCALE_BYTES
    total = 0.0
    for job in jobs:
        receipt, recipe = job.soft_labels.entry.receipt, job.spec.recipe
        if "mix" in recipe:
            lengths = plan.source.rows_of(job.soft_labels.entry).lengths()
            total += mixed_tokens(lengths) * (a_token + ID_BYTES) + receipt.rows * NAME_BYTES
        else:
            total += receipt.tokens * (a_token + (coded if "perturb" in recipe else 0.0))
        total += receipt.rows * (ROW_BYTES + 2 * LOGIT_BYTES * manifest.task.outputs) + SHARD_BYTES
    return round(total)


def mixed_tokens(lengths: Integers) -> float:
    """The expected number of tokens if each row is padded to the longer of itself and another of these rows."""
    rows = len(lengths)
    return float(np.sort(lengths) @ np.arange(1, 2 * rows, 2)) / rows


def known_epsilon(plan: Augmentation, store: Store) -> float | None:
    """The epsilon if the store knows it, 0 if no variant is perturbed; leaves no trace of the look-up."""
    if not plan.settings.uses("perturb"):
        return 0.0
    known = store.peek(plan.calibration[0])
    return None if known is None else float(known.facts["epsilon"])


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"
