"""The teacher's two passes: scores of every split, and variants of the train split. Each: plan, finish, publish."""

from pathlib import Path

from pipeline.augment.calibration import Found
from pipeline.augment.completion import finish, manifest_of, publish, take_stock
from pipeline.augment.estimate import check_room
from pipeline.augment.jobs import VariantJob
from pipeline.augment.model_set import ModelFolders
from pipeline.augment.plans import Augmentation, no_radius, scoring
from pipeline.augment.recipes import AugmentSettings, ScoreSettings
from pipeline.augment.teacher import Precision
from pipeline.augment.workers import RuntimeSettings, ThisProcess, Workers
from pipeline.errors import PipelineError
from pipeline.models import embedding_width
from pipeline.shards.manifest import Coding, Manifest, Receipt, manifest_hash
from pipeline.shards.store import ShardStore
from pipeline.tasks import Task


def score(prepared: Path, teacher: Path, settings: ScoreSettings, runtime: RuntimeSettings, out: Path) -> Manifest:
    """Score the untouched inputs of every split and write shards and manifest to ``out``."""
    task = Task.read(prepared)
    store = ShardStore(Path(runtime.store).resolve())
    key, jobs = scoring(prepared, teacher, settings)
    with open_workers(ModelFolders(teacher), settings.precision, store, runtime) as workers:
        receipts = finish(f"score {task.name}", jobs, store, workers)
    truncated = int(sum(receipt.statistics["truncated"] for receipt in receipts))
    manifest = manifest_of(task, teacher, key, 0, None, {"truncated": truncated}, jobs, receipts)
    if truncated:
        rows = sum(receipt.rows for receipt in receipts)
        print(f"score {task.name}: {truncated} of {rows} examples were cut to {key['max_length']} tokens", flush=True)
    return publish(out, store, manifest)


def augment(
    scores: Path, teacher: Path, scout: Path | None, settings: AugmentSettings, runtime: RuntimeSettings, out: Path
) -> Manifest:
    """Make every variant of the train split and write shards and manifest to ``out``.

    Args:
        scores: what ``score`` wrote.
        teacher: labels the variants, and aims the perturbations where there is no scout.
        scout: at whose mistakes perturbations are aimed.
        settings: what the variants are.
        runtime: who computes, and where the store is.
        out: replaced as a whole.

    Raises:
        ShardMismatch: scores or scout were made with another teacher, tokenizer, label order or format.
        PipelineError: the objective and the aim do not fit, or a shard could not be made; names it and the cause.
    """
    plan = Augmentation.of(scores, teacher, scout, settings)
    store = ShardStore(Path(runtime.store).resolve())
    folders = ModelFolders(teacher, scout, settings.masked_lm)
    with open_workers(folders, settings.precision, store, runtime) as workers:
        found = radius_found(plan, store, workers) if settings.perturbs() else no_radius()
        jobs = plan.jobs(found.radius, store)
        check_room(plan, jobs, store, runtime.max_bytes, embedding_width(teacher))
        find_words(plan, jobs, store, workers)
        receipts = finish(plan.name, jobs, store, workers)
    return publish(out, store, _manifest(plan, teacher, scores, found, jobs, receipts))


def open_workers(folders: ModelFolders, precision: Precision, store: ShardStore, runtime: RuntimeSettings) -> Workers:
    """The workers that the settings ask for; nothing is started before there is a job."""
    if runtime.workers == 0:
        return ThisProcess(folders, precision, store)
    from pipeline.augment.cluster import Cluster  # here, so that everything else runs without Ray

    return Cluster(folders, precision, store, runtime)


def radius_found(plan: Augmentation, store: ShardStore, workers: Workers) -> Found:
    """The radius, and what it does to a sample; it is remembered in the store."""
    key, job = plan.calibration()
    known = store.recall(key)
    if known is None:
        print(f"{plan.name}: {job.name}", flush=True)
        ((_, done),) = workers.run([job])
        for note in done.notes:
            print(f"{job.name}: {note}", flush=True)
        known = done.result.plain()
        try:
            store.remember(key, known)
        except OSError as cause:
            raise PipelineError(f"{job.name}: the store {store.folder} does not take it: {cause.strerror or cause}") from cause
    result = Found(**known)
    print(
        f"{plan.name}: radius {result.radius:g}; on {result.rows} rows it flips "
        f"{result.flips:.1%} of the teacher's answers, mean divergence {result.divergence:.3g}",
        flush=True,
    )
    return result


def find_words(plan: Augmentation, jobs: list[VariantJob], store: ShardStore, workers: Workers) -> None:
    """Have the candidates ready for every variant that is still to be made and replaces words."""
    replacing = [job for job in jobs if job.candidates is not None]
    missing = [replacing[number] for number in take_stock(replacing, store).missing]
    if wanted := plan.candidates(missing):
        finish(f"{plan.name}, words", wanted, store, workers)


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
        "settings": settings.model_dump(mode="json", exclude={"variants", "recipes"}),
    }
    coding = Coding(codec=settings.codec, width=embedding_width(teacher))
    return manifest_of(plan.source.manifest.task, teacher, plan.key, settings.variants, coding, details, jobs, receipts)
