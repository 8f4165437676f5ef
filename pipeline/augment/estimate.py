"""What a pass would cost: shards, bytes, teacher passes, time. Reads the store and times a few rows; writes nothing."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.augment.jobs import ScoreJob, ScoreWork, VariantJob
from pipeline.augment.model_set import ModelFolders, ModelSet
from pipeline.augment.plans import Augmentation, scoring
from pipeline.augment.recipes import AugmentSettings, ScoreSettings
from pipeline.augment.variants import SHORTENINGS, Making, Scored, make_variant
from pipeline.config.errors import PipelineError
from pipeline.config.runtime import RuntimeSettings, cores
from pipeline.corpus.encoding import Integers
from pipeline.corpus.task import Task
from pipeline.models.folder import embedding_width
from pipeline.perturbation.search import Effect
from pipeline.shards.codec import CODECS, CodecName
from pipeline.shards.store import ShardStore

TIMED_ROWS = 64
TIMED_TEXTS = 4
"""So many texts are given to the masked language model, which reads every one of them once a word."""

UNKNOWN_RADIUS = 0.123456789
"""Never found, so that no shard of the store has it; only for the timing."""

SEARCHES = 9
"""How often at most the sample is perturbed to find a radius and its effect."""

SCALE_BYTES, ID_BYTES, TYPE_BYTES, LOGIT_BYTES, ROW_BYTES, SHARD_BYTES = 4, 4, 1, 4, 64, 5200
"""Of a token's scale, id and type, of a logit, of all else that a row holds, and of what a file says of itself."""

NAME_BYTES = 16
"""Of a partner's id."""


@dataclass(frozen=True)
class Estimate:
    """The cost of what the store does not have."""

    name: str
    rows: int
    """Of the split or splits, each once."""
    variants: int
    shards: int
    missing: int
    missing_rows: int
    """Rows of the missing shards."""
    bytes: dict[CodecName, int]
    """Of the missing shards, by codec; empty where nothing is coded."""
    codec: CodecName
    forwards: int
    backwards: int
    """Most passes of one row through a model."""
    seconds: float
    """Of one worker such as this process, start apart."""
    workers: int

    def lines(self) -> list[str]:
        """For a person."""
        sizes = [f"{name} {_size(size)}{' (chosen)' if name == self.codec else ''}" for name, size in self.bytes.items()]
        found = [
            f"{self.name}: nothing is written, this is the plan",
            f"  examples         {self.rows:,}" + (f" in {self.variants} variants" if self.variants else ""),
            f"  shards           {self.shards:,}: {self.shards - self.missing:,} in the store, {self.missing:,} to compute",
            f"  rows to compute  {self.missing_rows:,}",
            f"  teacher passes   {self.forwards:,} forward, {self.backwards:,} backward, a row each, at most",
        ]
        found += [f"  bytes to write   {', '.join(sizes)}"] if sizes else []
        each = "" if self.workers == 1 else f" on {self.workers} workers, {_time(self.seconds)} on one"
        return [*found, f"  time             {_time(self.seconds / self.workers)}{each}, by a short timing on this machine"]


def score_estimate(prepared: Path, teacher: Path, settings: ScoreSettings, runtime: RuntimeSettings) -> Estimate:
    """What ``score`` would cost."""
    store = ShardStore(Path(runtime.store).resolve())
    _, jobs = scoring(prepared, teacher, settings)
    missing = [job for job in jobs if store.peek(job.key) is None]
    rows = [job.place.stop - job.place.start for job in missing]
    a_row = _score_seconds(missing[0], ModelSet(ModelFolders(teacher), settings.precision)) if missing else 0.0
    return Estimate(
        name=f"score {Task.read(prepared).name}",
        rows=sum(job.place.stop - job.place.start for job in jobs),
        variants=0,
        shards=len(jobs),
        missing=len(missing),
        missing_rows=sum(rows),
        bytes={},
        codec="int8",
        forwards=sum(rows),
        backwards=0,
        seconds=a_row * sum(rows),
        workers=_workers(runtime),
    )


def augment_estimate(
    scores: Path,
    teacher: Path,
    scout: Path | None,
    settings: AugmentSettings,
    runtime: RuntimeSettings,
    words: Path | None = None,
) -> Estimate:
    """What ``augment`` would cost; where the radius is still to be found, no variant is in the store yet."""
    plan = Augmentation.of(scores, teacher, scout, settings, words)
    store = ShardStore(Path(runtime.store).resolve())
    known = known_radius(plan, store)
    radius, searched = UNKNOWN_RADIUS if known is None else known, _searched(plan, known)
    jobs = plan.jobs(radius, store)
    missing = [job for job in jobs if store.peek(job.key) is None]
    rows = sum(job.scores.entry.receipt.rows for job in missing)
    passes = [_passes(settings, job) for job in missing] + [(searched * (_steps(settings) + 1), searched * _steps(settings))]
    models = ModelSet(ModelFolders(teacher, scout, plan.masked_lm, settings.masked_lm), settings.precision)
    return Estimate(
        name=plan.name,
        rows=sum(entry.receipt.rows for entry in plan.entries()),
        variants=settings.variants,
        shards=len(jobs),
        missing=len(missing),
        missing_rows=rows,
        bytes=sizes_of(plan, missing, store, embedding_width(teacher)),
        codec=settings.codec,
        forwards=sum(forward for forward, _ in passes),
        backwards=sum(backward for _, backward in passes),
        seconds=_variant_seconds(plan, missing, radius, searched, store, models),
        workers=_workers(runtime),
    )


def check_room(plan: Augmentation, missing: Sequence[VariantJob], store: ShardStore, most: int | None, width: int) -> None:
    """Refuse what would add more to the store than is allowed.

    Raises:
        PipelineError: says how much it would be, and by which codec it would be less.
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


def sizes_of(plan: Augmentation, jobs: Sequence[VariantJob], store: ShardStore, width: int) -> dict[CodecName, int]:
    """About how many bytes these jobs add to the store by each codec, words that are still to be looked up among them."""
    words = proposals_bytes(plan, jobs, store)
    return {codec: bytes_of(plan, jobs, codec, width) + words for codec in CODECS}


def proposals_bytes(plan: Augmentation, jobs: Sequence[VariantJob], store: ShardStore) -> int:
    """At most so many bytes take the words that are looked up for these jobs: as if every token were a word."""
    unknown = [job.scores.entry.receipt for job in plan.candidates(jobs) if store.peek(job.key) is None]
    if not unknown or plan.settings.masked_lm is None:
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
        receipt, recipe = job.scores.entry.receipt, job.making.recipe
        if "mix" in recipe:
            lengths = plan.source.rows_of(job.scores.entry).lengths()
            total += mixed_tokens(lengths) * (a_token + ID_BYTES) + receipt.rows * NAME_BYTES
        else:
            total += receipt.tokens * (a_token + (coded if "perturb" in recipe else 0.0))
        total += receipt.rows * (ROW_BYTES + 2 * LOGIT_BYTES * manifest.task.outputs) + SHARD_BYTES
    return round(total)


def mixed_tokens(lengths: Integers) -> float:
    """How many tokens rows of these lengths have once each is filled to the longer of itself and another, on average."""
    rows = len(lengths)
    return float(np.sort(lengths) @ np.arange(1, 2 * rows, 2)) / rows


def known_radius(plan: Augmentation, store: ShardStore) -> float | None:
    """The radius, unless it is still to be found; leaves no trace."""
    if not plan.settings.perturbs():
        return 0.0
    known = store.peek_note(plan.calibration[0])
    return None if known is None else float(known["radius"])


def _searched(plan: Augmentation, radius: float | None) -> int:
    """How many rows at most are perturbed to find a radius that is not known."""
    if radius is not None:
        return 0
    calibration = plan.calibration[1]
    return calibration.rows * (SEARCHES if isinstance(calibration.wanted, Effect) else 1)


def _steps(settings: AugmentSettings) -> int:
    """Backward passes that one perturbation takes."""
    return settings.perturbation.steps if settings.aims() else 0


def _passes(settings: AugmentSettings, job: VariantJob) -> tuple[int, int]:
    """Most forward and backward passes of a job, rows counted each."""
    rows, recipe = job.scores.entry.receipt.rows, job.making.recipe
    steps = _steps(settings) if "perturb" in recipe else 0
    again = len(SHORTENINGS) if settings.keep_label and "perturb" in recipe else 0
    return rows * (steps + 1 + again), rows * steps


def _variant_seconds(
    plan: Augmentation, missing: Sequence[VariantJob], radius: float, searched: int, store: ShardStore, models: ModelSet
) -> float:
    """Seconds of one worker for these jobs and ``searched`` perturbations before, by timing each recipe on a few rows."""
    if not missing:
        return 0.0
    _, calibration = plan.calibration
    sample = calibration.scored.take(np.arange(min(TIMED_ROWS, len(calibration.scored.inputs))))
    pace: dict[tuple[str, ...], float] = {}
    for job in missing:
        recipe = tuple(job.making.recipe)
        pace[recipe] = pace[recipe] if recipe in pace else _seconds_a_row(models, sample, job.making)
    search = searched * max((seconds for recipe, seconds in pace.items() if "perturb" in recipe), default=0.0)
    made = sum(pace[tuple(job.making.recipe)] * job.scores.entry.receipt.rows for job in missing)
    unknown = [job.scores.entry.receipt.rows for job in plan.candidates(missing) if store.peek(job.key) is None]
    return search + made + (_words_seconds(models, sample) * sum(unknown) if unknown else 0.0)


def _seconds_a_row(models: ModelSet, sample: Scored, making: Making) -> float:
    candidates = None
    if "masked_lm" in making.recipe:
        sample = sample.take(np.arange(min(TIMED_TEXTS, len(sample.inputs))))
        candidates = models.masked_lm.candidates(sample.inputs.input_ids, sample.inputs.token_type_ids)
    return _timed(lambda: make_variant(models, sample, candidates, making)) / len(sample.inputs)


def _words_seconds(models: ModelSet, sample: Scored) -> float:
    few = sample.inputs.take(np.arange(min(TIMED_TEXTS, len(sample.inputs))))
    return _timed(lambda: models.masked_lm.candidates(few.input_ids, few.token_type_ids)) / len(few)


def _score_seconds(job: ScoreJob, models: ModelSet) -> float:
    work: ScoreWork = job.work()
    inputs = work.encoded(models.teacher)[0]
    few = inputs.take(np.arange(min(TIMED_ROWS, len(inputs))))
    return _timed(lambda: models.teacher.logits(few, models.batches, work.batch_rows)) / len(few)


def _timed(work: Callable[[], object]) -> float:
    """Seconds of a second run, as a worker takes them: on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        work()
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    finally:
        torch.set_num_threads(threads)


def _workers(runtime: RuntimeSettings) -> int:
    """How many workers this machine would have; of a cluster no more is known before it is joined."""
    if runtime.workers == 0:
        return 1
    places = torch.cuda.device_count() or cores()
    return min(runtime.workers or places, places)


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:,.1f} h"
