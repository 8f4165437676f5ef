"""The teacher's two passes: logits of every split, and variants of the train split. Each plans, computes and publishes."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.augment.calibration import CalibrationJob, Found, joined
from pipeline.augment.estimate import UNKNOWN_EPSILON, absent, check_room
from pipeline.augment.jobs import Job, ShardJob
from pipeline.augment.plans import NO_EPSILON, Augmentation, soft_label_jobs
from pipeline.augment.teacher import ModelFolders
from pipeline.augment.workers import ThisProcess, Workers
from pipeline.config.errors import PipelineError
from pipeline.config.settings import Effect, InferenceSettings, Precision, RuntimeSettings
from pipeline.corpus.task import Task
from pipeline.models.folder import ModelFolder
from pipeline.shards.manifest import SHARD_FILE, Coding, Manifest, Receipt, ShardEntry, manifest_hash, put_shards
from pipeline.shards.schema import FORMAT_VERSION
from pipeline.store.collect import stored_as
from pipeline.store.files import folder_written_whole
from pipeline.store.keys import Key
from pipeline.store.store import Store, open_store, writing_to
from pipeline.training.masked_lm import masked_lm_in

SECONDS_BETWEEN_LINES = 10.0


def soft_label(prepared: Path, teacher: Path, settings: InferenceSettings, runtime: RuntimeSettings, out: Path) -> Manifest:
    """Run the teacher over the clean inputs of every split and write shards and manifest to ``out``."""
    task, store, opened = Task.read(prepared), open_store(runtime), ModelFolder(teacher)
    key, jobs = soft_label_jobs(prepared, opened, settings)
    folders = ModelFolders(teacher, teacher_hash=key["teacher"])
    with open_workers(folders, settings.precision, store, runtime) as workers:
        name = f"soft_label {task.name}"
        receipts = finish(name, jobs, take_stock(name, jobs, store), workers)
    truncated = int(sum(receipt.statistics["truncated"] for receipt in receipts))
    fields = {"task": task, "key": key, "coding": None, "variants": 0, "details": {"truncated": truncated}}
    manifest = manifest_of(opened, jobs, receipts, [job.key for job in jobs], **fields)
    if truncated:
        rows = sum(receipt.rows for receipt in receipts)
        print(f"{name}: {truncated} of {rows} examples were truncated to {key['max_length']} tokens", flush=True)
    return publish(out, store, manifest)


def augment(plan: Augmentation, runtime: RuntimeSettings, out: Path) -> Manifest:
    """Make every variant of the train split and write shards and manifest to ``out``, which is replaced as a whole."""
    settings, store = plan.settings, open_store(runtime)
    if runtime.max_bytes is not None and plan.known_epsilon(store) is None:
        check_room(plan, absent(plan.jobs(UNKNOWN_EPSILON), store), store, runtime.max_bytes)
    with open_workers(plan.models, settings.inference.precision, store, runtime) as workers:
        found = epsilon_found(plan, store, workers) if settings.uses("perturb") else NO_EPSILON
        jobs = plan.jobs(found.epsilon)
        stock = take_stock(plan.name, jobs, store)
        missing = [job for job, receipt in zip(jobs, stock, strict=True) if receipt is None]
        check_room(plan, missing, store, runtime.max_bytes)
        partitions = {job.partition for job in missing}
        put_shards(store, plan.source.folder, [entry for entry in plan.entries() if entry.partition in partitions])
        if words := plan.candidates(missing):
            title = f"{plan.name}, words"
            finish(title, words, take_stock(title, words, store), workers)
        receipts = finish(plan.name, jobs, stock, workers)
    _note_vanished(plan, jobs, receipts)
    details = {
        "soft_labels": manifest_hash(plan.source.folder),
        "recipes": settings.recipes,
        "epsilon": found.epsilon,
        "calibration": asdict(found),
        "checkpoints": len(plan.models.surrogate_hashes),
        "masked_lm": masked_lm_in(plan.models.masked_lm).model_dump() if plan.models.masked_lm else None,
        "settings": settings.model_dump(mode="json", exclude={"variants", "recipes"}),
    }
    fields = {
        "task": plan.source.manifest.task,
        "key": plan.key,
        "coding": Coding(codec=settings.codec, width=plan.teacher.embedding_width),
        "variants": settings.variants,
        "details": details,
    }
    return publish(out, store, manifest_of(plan.teacher, jobs, receipts, plan.stored(jobs), **fields))


def _note_vanished(plan: Augmentation, jobs: Sequence[ShardJob], receipts: Sequence[Receipt]) -> None:
    """Report rows with a zero gradient, whose δ is only its random initial value."""
    pairs = zip(jobs, receipts, strict=True)
    perturbed = [receipt for job, receipt in pairs if "perturb" in plan.settings.recipe(job.variant)]
    if vanished := int(sum(receipt.statistics["vanished"] for receipt in perturbed)):
        rows = sum(receipt.rows for receipt in perturbed)
        print(
            f"{plan.name}: {vanished} of {rows} perturbed rows had a zero gradient, so their perturbation did not change in "
            "that step; a larger perturbation.init may help",
            flush=True,
        )


def open_workers(
    folders: ModelFolders, precision: Precision, store: Store, runtime: RuntimeSettings
) -> AbstractContextManager[Workers]:
    """The workers of the settings; nothing starts before the first job."""
    if runtime.workers == 0:
        return closing(ThisProcess(folders, precision, store))
    from pipeline.augment.engine import RayActors  # here, so that everything else runs without Ray

    return closing(RayActors(folders, precision, store, runtime))


def epsilon_found(plan: Augmentation, store: Store, workers: Workers) -> Found:
    """Epsilon and its effect on a sample, kept in the store."""
    key, calibration = plan.calibration

    def effects(trial: Sequence[CalibrationJob]) -> list[Found]:
        found = results(trial, workers)
        print(f"{plan.name}: tried {trial[0].spec.epsilon:.3g}, {joined(found).effect}", flush=True)
        return found

    if (entry := store.get(key)) is not None:
        result = Found(**entry.facts)
    else:
        searched = isinstance(plan.settings.perturbation.epsilon, Effect)
        doing = "searching epsilon" if searched else "measuring the effect of epsilon"
        print(f"{plan.name}: {doing} on {len(calibration.labelled.inputs)} rows of the train split", flush=True)
        result = calibration.find(effects)
        with writing_to(store), store.put(key, asdict(result)):
            pass
    print(f"{plan.name}: epsilon {result.epsilon:g}, on {result.rows} rows {result.effect}", flush=True)
    return result


def results(jobs: Sequence[Job], workers: Workers, counter: "Counter | None" = None) -> list[Any]:
    """The results of jobs, in order; prints their notes."""
    found: dict[int, Any] = {}
    for job, done in workers.run(jobs) if jobs else ():
        found[id(job)] = done.result
        for note in done.notes:
            print(f"{job.name}: {note}", flush=True)
        if counter is not None:
            counter.advance(done.result.rows)
    return [found[id(job)] for job in jobs]


def take_stock(name: str, jobs: Sequence[ShardJob], store: Store) -> list[Receipt | None]:
    """The receipt of each job's shard, verified by its sha256, or None if it is missing; reports damaged shards."""
    entries = store.find([job.key for job in jobs])
    pairs = zip(jobs, entries, strict=True)
    if damaged := [job.name for job, entry in pairs if entry is None and store.has(job.key)]:
        print(f"{name}: damaged in the store, computed again: {', '.join(damaged)}", flush=True)
    return [None if entry is None else Receipt.of(entry) for entry in entries]


def finish(name: str, jobs: Sequence[ShardJob], stock: Sequence[Receipt | None], workers: Workers) -> list[Receipt]:
    """The receipt of every job; ``workers`` compute the missing shards."""
    missing = [job for job, receipt in zip(jobs, stock, strict=True) if receipt is None]
    print(f"{name}: {len(jobs)} shards, {len(jobs) - len(missing)} in the store, {len(missing)} to compute", flush=True)
    made = iter(results(missing, workers, Counter(name, len(missing))))
    return [receipt or next(made) for receipt in stock]


class Counter:
    """Counts finished shards and prints a line now and then."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total, self._done, self._rows = name, total, 0, 0
        self._began = self._last = time.monotonic()

    def advance(self, rows: int) -> None:
        """Count one more shard of that many rows."""
        self._done, self._rows, now = self._done + 1, self._rows + rows, time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES or self._done == self._total:
            self._last, seconds = now, now - self._began
            left = seconds / self._done * (self._total - self._done)
            ending = f"{left:.0f} s left" if left else f"done in {seconds:.0f} s"
            pace = f"{self._rows / max(seconds, 1e-9):,.0f} rows/s"
            print(f"{self._name}: {self._done}/{self._total} shards, {pace}, {ending}", flush=True)


def manifest_of(
    teacher: ModelFolder,
    jobs: Sequence[ShardJob],
    receipts: Sequence[Receipt],
    stored: Sequence[Key],
    **fields: Any,
) -> Manifest:
    """The manifest of a complete set; ``stored`` are the keys of all its store entries, ``fields`` the other fields."""
    shards = [
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
        content=fields["key"]["content"],
        token_types="token_type_ids" in teacher.tokenizer.model_input_names,
        pad_token_id=int(teacher.tokenizer.pad_token_id),
        shards=tuple(shards),
        stored_as=tuple(stored_as(*stored)),
        **fields,
    )


def publish(out: Path, store: Store, manifest: Manifest) -> Manifest:
    """Place exactly the shards of the manifest in ``out``, the manifest last; on an error the previous content is kept."""
    keys = [entry.receipt.key for entry in manifest.shards]
    try:
        with folder_written_whole(out) as folder:
            for entry, stored in zip(manifest.shards, store.peek_all(keys), strict=True):
                if stored is None:
                    raise PipelineError(f"{entry.file} has disappeared from the store {store}; run the stage again")
                if not store.remote:
                    store.place(stored, folder, {SHARD_FILE: entry.file})
            manifest.save(folder)
    except OSError as cause:
        raise PipelineError(f"{out} cannot be written: {cause.strerror or cause}; all shards are kept in the store") from cause
    print(f"{out}: {len(manifest.shards)} shards, {sum(e.receipt.bytes for e in manifest.shards) / 1e6:,.1f} MB", flush=True)
    return manifest
