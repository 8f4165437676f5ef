"""The teacher's two passes: scores of every split, and variants of the train split. Each: plan, finish, publish."""

import functools
from collections.abc import Sequence
from pathlib import Path

from pipeline.augment.calibration import CalibrationJob, Found, joined
from pipeline.augment.completion import finish, manifest_of, publish, take_stock
from pipeline.augment.estimate import UNKNOWN_RADIUS, check_room, known_radius
from pipeline.augment.jobs import VariantJob
from pipeline.augment.model_set import ModelFolders
from pipeline.augment.plans import Augmentation, no_radius, scoring
from pipeline.augment.recipes import AugmentSettings, ScoreSettings
from pipeline.augment.teacher import Precision
from pipeline.augment.workers import ThisProcess, Workers
from pipeline.config.errors import PipelineError
from pipeline.config.runtime import RuntimeSettings
from pipeline.corpus.task import Kind, Task
from pipeline.models.folder import embedding_width
from pipeline.perturbation.search import Effect
from pipeline.shards.manifest import Coding, Manifest, Receipt, manifest_hash
from pipeline.shards.store import ShardStore
from pipeline.training.masked_lm import words_in


def score(prepared: Path, teacher: Path, settings: ScoreSettings, runtime: RuntimeSettings, out: Path) -> Manifest:
    """Score the untouched inputs of every split and write shards and manifest to ``out``."""
    task = Task.read(prepared)
    store = ShardStore(Path(runtime.store).resolve())
    key, jobs = scoring(prepared, teacher, settings)
    folders = ModelFolders(teacher, teacher_hash=key["teacher"])
    with open_workers(folders, settings.precision, store, runtime) as workers:
        receipts = finish(f"score {task.name}", jobs, take_stock(jobs, store), workers)
    truncated = int(sum(receipt.statistics["truncated"] for receipt in receipts))
    manifest = manifest_of(task, teacher, key, 0, None, {"truncated": truncated}, jobs, receipts)
    if truncated:
        rows = sum(receipt.rows for receipt in receipts)
        print(f"score {task.name}: {truncated} of {rows} examples were cut to {key['max_length']} tokens", flush=True)
    return publish(out, store, manifest)


def augment(
    scores: Path,
    teacher: Path,
    scout: Path | None,
    settings: AugmentSettings,
    runtime: RuntimeSettings,
    out: Path,
    words: Path | None = None,
) -> Manifest:
    """Make every variant of the train split and write shards and manifest to ``out``.

    Args:
        scores: what ``score`` wrote.
        teacher: labels the variants, and aims the perturbations where there is no scout.
        scout: at whose mistakes perturbations are aimed.
        settings: what the variants are.
        runtime: who computes, and where the store is.
        out: replaced as a whole.
        words: what ``words`` wrote, where a recipe asks for a masked language model.

    Raises:
        ShardMismatch: scores or scout were made with another teacher, tokenizer, label order or format.
        PipelineError: the objective and the aim do not fit, or a shard could not be made; names it and the cause.
    """
    plan = Augmentation.of(scores, teacher, scout, settings, words)
    store = ShardStore(Path(runtime.store).resolve())
    folders = ModelFolders(
        teacher,
        scout,
        plan.masked_lm,
        settings.masked_lm,
        teacher_hash=plan.key["teacher"],
        scout_hashes=plan.snapshots,
        masked_lm_hash=plan.masked_lm_hash,
    )
    width = embedding_width(teacher)
    if known_radius(plan, store) is None:
        check_room(plan, _missing(plan.jobs(UNKNOWN_RADIUS, store), store), store, runtime.max_bytes, width)
    with open_workers(folders, settings.precision, store, runtime) as workers:
        found = radius_found(plan, store, workers) if settings.perturbs() else no_radius()
        jobs = plan.jobs(found.radius, store)
        stock = take_stock(jobs, store)
        missing = [jobs[number] for number in stock.missing]
        check_room(plan, missing, store, runtime.max_bytes, width)
        find_words(plan, missing, store, workers)
        receipts = finish(plan.name, jobs, stock, workers)
    _tell_of_vanished(plan, jobs, receipts)
    return publish(out, store, _manifest(plan, teacher, scores, found, jobs, receipts))


def _tell_of_vanished(plan: Augmentation, jobs: Sequence[VariantJob], receipts: Sequence[Receipt]) -> None:
    """Where a gradient was zero, a perturbation is no more than the random start that it began with."""
    pairs = zip(jobs, receipts, strict=True)
    perturbed = [receipt for job, receipt in pairs if "perturb" in plan.settings.recipe(job.variant)]
    if vanished := int(sum(receipt.statistics["vanished"] for receipt in perturbed)):
        rows = sum(receipt.rows for receipt in perturbed)
        print(
            f"{plan.name}: {vanished} of {rows} perturbed rows met a gradient of zero, where their perturbation stayed what it "
            "was; a larger perturbation.start may help",
            flush=True,
        )


def _missing(jobs: list[VariantJob], store: ShardStore) -> list[VariantJob]:
    return [jobs[number] for number in take_stock(jobs, store).missing]


def open_workers(folders: ModelFolders, precision: Precision, store: ShardStore, runtime: RuntimeSettings) -> Workers:
    """The workers that the settings ask for; nothing is started before there is a job."""
    if runtime.workers == 0:
        return ThisProcess(folders, precision, store)
    from pipeline.augment.cluster import Cluster  # here, so that everything else runs without Ray

    return Cluster(folders, precision, store, runtime)


def radius_found(plan: Augmentation, store: ShardStore, workers: Workers) -> Found:
    """The radius, and what it does to a sample; it is remembered in the store."""
    key, calibration = plan.calibration
    known = store.recall(key)
    kind = plan.source.manifest.task.kind
    if known is None:
        seeking = "seeking the radius" if isinstance(calibration.wanted, Effect) else "measuring the effect of the radius"
        print(f"{plan.name}: {seeking} on {calibration.rows} rows of the train split", flush=True)
        known = calibration.find(functools.partial(_effects, plan.name, kind, workers)).plain()
        try:
            store.remember(key, known)
        except OSError as cause:
            raise PipelineError(f"the radius found: the store {store.folder} does not take it: {cause.strerror}") from cause
    result = Found(**known)
    print(f"{plan.name}: radius {result.radius:g}, on {result.rows} rows {result.words(kind)}", flush=True)
    return result


def _effects(name: str, kind: Kind, workers: Workers, trial: Sequence[CalibrationJob]) -> list[Found]:
    """What one radius does to each part of the sample."""
    found: dict[int, Found] = {}
    for job, done in workers.run(trial):
        found[id(job)] = done.result
        for note in done.notes:
            print(f"{job.name}: {note}", flush=True)
    in_order = [found[id(job)] for job in trial]
    print(f"{name}: tried {trial[0].radius:.3g}, {joined(in_order).words(kind)}", flush=True)
    return in_order


def find_words(plan: Augmentation, missing: list[VariantJob], store: ShardStore, workers: Workers) -> None:
    """Have the candidates ready for every variant that is still to be made and replaces words."""
    if wanted := plan.candidates(missing):
        finish(f"{plan.name}, words", wanted, take_stock(wanted, store), workers)


def _manifest(
    plan: Augmentation, teacher: Path, scores: Path, found: Found, jobs: list[VariantJob], receipts: list[Receipt]
) -> Manifest:
    settings = plan.settings
    details = {
        "scores": manifest_hash(scores),
        "recipes": settings.recipes,
        "radius": found.radius,
        "calibration": found.plain(),
        "snapshots": len(plan.snapshots),
        "words": words_in(plan.masked_lm).model_dump() if plan.masked_lm is not None else None,
        "settings": settings.model_dump(mode="json", exclude={"variants", "recipes"}),
    }
    coding = Coding(codec=settings.codec, width=embedding_width(teacher))
    return manifest_of(plan.source.manifest.task, teacher, plan.key, settings.variants, coding, details, jobs, receipts)
