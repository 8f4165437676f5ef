"""The teacher's two passes: logits of every split, and variants of the train split. Each: plan, compute, publish."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.augment.calibration import CalibrationJob, Found, joined
from pipeline.augment.estimate import UNKNOWN_EPSILON, check_room, known_epsilon
from pipeline.augment.jobs import ShardJob
from pipeline.augment.plans import Augmentation, no_epsilon, soft_label_jobs
from pipeline.augment.progress import Counter
from pipeline.augment.teacher import ModelFolders
from pipeline.augment.variant_jobs import VariantJob
from pipeline.augment.workers import ThisProcess, Workers
from pipeline.config.corpus import Kind
from pipeline.config.errors import PipelineError
from pipeline.config.settings import AugmentSettings, Effect, InferenceSettings, Precision, RuntimeSettings
from pipeline.corpus.task import Task
from pipeline.models.folder import embedding_width, load_tokenizer
from pipeline.shards.manifest import SHARD_FILE, Coding, Manifest, Receipt, ShardEntry, manifest_hash
from pipeline.shards.schema import FORMAT_VERSION
from pipeline.store.files import folder_written_whole
from pipeline.store.keys import Key
from pipeline.store.store import Entry, Store, stored_as
from pipeline.training.masked_lm import masked_lm_in


def soft_label(prepared: Path, teacher: Path, settings: InferenceSettings, runtime: RuntimeSettings, out: Path) -> Manifest:
    """Run the teacher over the clean inputs of every split and write shards and manifest to ``out``."""
    task = Task.read(prepared)
    store = Store(Path(runtime.store).resolve())
    key, jobs = soft_label_jobs(prepared, teacher, settings)
    folders = ModelFolders(teacher, teacher_hash=key["teacher"])
    with open_workers(folders, settings.precision, store, runtime) as workers:
        receipts = finish(f"soft_label {task.name}", jobs, take_stock(jobs, store), workers)
    truncated = int(sum(receipt.statistics["truncated"] for receipt in receipts))
    manifest = manifest_of(task, teacher, key, 0, None, {"truncated": truncated}, jobs, receipts)
    if truncated:
        rows = sum(receipt.rows for receipt in receipts)
        print(f"soft_label {task.name}: {truncated} of {rows} examples were cut to {key['max_length']} tokens", flush=True)
    return publish(out, store, manifest)


def augment(
    soft_labels: Path,
    teacher: Path,
    settings: AugmentSettings,
    runtime: RuntimeSettings,
    out: Path,
    surrogate: Path | None = None,
    masked_lm: Path | None = None,
) -> Manifest:
    """Make every variant of the train split and write shards and manifest to ``out``.

    Args:
        soft_labels: what ``soft_label`` wrote.
        teacher: labels the variants, and gives the gradient if there is no surrogate.
        settings: of the variants.
        runtime: workers and store.
        out: replaced as a whole.
        surrogate: what ``surrogate`` wrote, if its checkpoints give the gradient.
        masked_lm: what ``masked_lm`` wrote, if a recipe needs a masked language model.

    Raises:
        ShardMismatch: soft_labels or surrogate were made with another teacher, tokenizer, label order or format.
        PipelineError: the settings contradict each other, or a shard could not be made; names it and the cause.
    """
    plan = Augmentation.of(soft_labels, teacher, settings, surrogate, masked_lm)
    store = Store(Path(runtime.store).resolve())
    folders = ModelFolders(
        teacher,
        surrogate,
        plan.masked_lm,
        settings,
        teacher_hash=plan.key["teacher"],
        surrogate_hashes=plan.checkpoints,
        masked_lm_hash=plan.masked_lm_hash,
    )
    width = embedding_width(teacher)
    if known_epsilon(plan, store) is None:
        check_room(plan, _missing(plan.jobs(UNKNOWN_EPSILON, store), store), store, runtime.max_bytes, width)
    with open_workers(folders, settings.inference.precision, store, runtime) as workers:
        found = epsilon_found(plan, store, workers) if settings.uses("perturb") else no_epsilon()
        jobs = plan.jobs(found.epsilon, store)
        stock = take_stock(jobs, store)
        missing = [jobs[number] for number in stock.missing]
        check_room(plan, missing, store, runtime.max_bytes, width)
        find_words(plan, missing, store, workers)
        receipts = finish(plan.name, jobs, stock, workers)
    _tell_of_vanished(plan, jobs, receipts)
    return publish(out, store, _manifest(plan, teacher, soft_labels, found, jobs, receipts))


def _tell_of_vanished(plan: Augmentation, jobs: Sequence[VariantJob], receipts: Sequence[Receipt]) -> None:
    """Report rows with a zero gradient, whose perturbation is no more than its random start."""
    pairs = zip(jobs, receipts, strict=True)
    perturbed = [receipt for job, receipt in pairs if "perturb" in plan.settings.recipe(job.variant)]
    if vanished := int(sum(receipt.statistics["vanished"] for receipt in perturbed)):
        rows = sum(receipt.rows for receipt in perturbed)
        print(
            f"{plan.name}: {vanished} of {rows} perturbed rows had a zero gradient, so their perturbation did not change in "
            "that step; a larger perturbation.init may help",
            flush=True,
        )


def _missing(jobs: list[VariantJob], store: Store) -> list[VariantJob]:
    return [jobs[number] for number in take_stock(jobs, store).missing]


def open_workers(folders: ModelFolders, precision: Precision, store: Store, runtime: RuntimeSettings) -> Workers:
    """The workers that the settings name; nothing is started before the first job."""
    if runtime.workers == 0:
        return ThisProcess(folders, precision, store)
    from pipeline.augment.cluster import Cluster  # here, so that everything else runs without Ray

    return Cluster(folders, precision, store, runtime)


def epsilon_found(plan: Augmentation, store: Store, workers: Workers) -> Found:
    """The epsilon and its effect on a sample, kept in the store."""
    key, calibration = plan.calibration
    entry = store.get(key)
    known = None if entry is None else entry.facts
    kind = plan.source.manifest.task.kind
    if known is None:
        seeking = "seeking the epsilon" if isinstance(calibration.wanted, Effect) else "measuring the effect of the epsilon"
        print(f"{plan.name}: {seeking} on {calibration.rows} rows of the train split", flush=True)
        known = calibration.find(functools.partial(_effects, plan.name, kind, workers)).plain()
        try:
            with store.put(key, known):
                pass
        except OSError as cause:
            raise PipelineError(f"the epsilon found: the store {store.folder} does not take it: {cause.strerror}") from cause
    result = Found(**known)
    print(f"{plan.name}: epsilon {result.epsilon:g}, on {result.rows} rows {result.words(kind)}", flush=True)
    return result


def _effects(name: str, kind: Kind, workers: Workers, trial: Sequence[CalibrationJob]) -> list[Found]:
    """The effect of one epsilon on each part of the sample."""
    found: dict[int, Found] = {}
    for job, done in workers.run(trial):
        found[id(job)] = done.result
        for note in done.notes:
            print(f"{job.name}: {note}", flush=True)
    in_order = [found[id(job)] for job in trial]
    print(f"{name}: tried {trial[0].epsilon:.3g}, {joined(in_order).words(kind)}", flush=True)
    return in_order


def find_words(plan: Augmentation, missing: list[VariantJob], store: Store, workers: Workers) -> None:
    """Compute the candidates of every missing variant that replaces words."""
    if wanted := plan.candidates(missing):
        finish(f"{plan.name}, words", wanted, take_stock(wanted, store), workers)


def _manifest(
    plan: Augmentation, teacher: Path, soft_labels: Path, found: Found, jobs: list[VariantJob], receipts: list[Receipt]
) -> Manifest:
    settings = plan.settings
    details = {
        "soft_labels": manifest_hash(soft_labels),
        "recipes": settings.recipes,
        "epsilon": found.epsilon,
        "calibration": found.plain(),
        "checkpoints": len(plan.checkpoints),
        "masked_lm": masked_lm_in(plan.masked_lm).model_dump() if plan.masked_lm is not None else None,
        "settings": settings.model_dump(mode="json", exclude={"variants", "recipes"}),
    }
    coding = Coding(codec=settings.codec, width=embedding_width(teacher))
    return manifest_of(
        plan.source.manifest.task, teacher, plan.key, settings.variants, coding, details, jobs, receipts, plan.stored(jobs)
    )


@dataclass(frozen=True)
class Stocktaking:
    """Which jobs' shards the store has."""

    receipts: list[Receipt | None]
    """One a job; None for a missing shard."""
    damaged: list[str]
    """Names of jobs whose shard was complete once and is damaged now."""

    @property
    def missing(self) -> list[int]:
        """Positions of the jobs without a shard."""
        return [number for number, receipt in enumerate(self.receipts) if receipt is None]


def take_stock(jobs: Sequence[ShardJob], store: Store) -> Stocktaking:
    """Look up the shard of every job and verify it by its sha256."""
    entries = [store.get(job.key) for job in jobs]
    receipts = [None if entry is None else Receipt.of(entry) for entry in entries]
    pairs = zip(jobs, entries, strict=True)
    return Stocktaking(receipts, [job.name for job, entry in pairs if entry is None and store.folder_of(job.key).exists()])


def finish(name: str, jobs: Sequence[ShardJob], stock: Stocktaking, workers: Workers) -> list[Receipt]:
    """A receipt for every job: from the store if it has the shard, else from the workers."""
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
    stored: Sequence[Key] = (),
) -> Manifest:
    """The manifest of a complete set; ``key`` is what all its shards share, ``stored`` names by-products in the store."""
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
        stored_as=tuple(stored_as(*(job.key for job in jobs), *stored)),
    )


def publish(out: Path, store: Store, manifest: Manifest) -> Manifest:
    """Put exactly the shards of the manifest into ``out``, the manifest last.

    Raises:
        PipelineError: the folder cannot be written; its previous content is kept.
    """
    try:
        with folder_written_whole(out) as folder:
            for entry in manifest.shards:
                store.place(Entry(store.folder_of(entry.receipt.key), entry.receipt.key), folder, {SHARD_FILE: entry.file})
            manifest.save(folder)
    except OSError as cause:
        raise PipelineError(f"{out} cannot be written: {cause.strerror or cause}; all shards are kept in the store") from cause
    print(f"{out}: {len(manifest.shards)} shards, {sum(e.receipt.bytes for e in manifest.shards) / 1e6:,.1f} MB", flush=True)
    return manifest
