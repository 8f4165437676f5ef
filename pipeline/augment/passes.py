"""The teacher's two passes: scores of every split, and perturbed variants of the train split.

Each plans its jobs, takes what the store already has, has the rest computed, and publishes the complete set with its
manifest written last.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pipeline import encoding, models, perturbation
from pipeline.augment import calibration as calibration_code
from pipeline.augment import jobs as jobs_code
from pipeline.augment import teacher as teacher_code
from pipeline.augment.calibration import CalibrationJob, Found
from pipeline.augment.cluster import Cluster, RuntimeSettings
from pipeline.augment.jobs import PerturbJob, ScoreJob, ShardJob
from pipeline.augment.partition import Partition, cut
from pipeline.augment.teacher import Inputs
from pipeline.config import Settings
from pipeline.errors import PipelineError
from pipeline.files import folder_written_whole, hash_of
from pipeline.models import embedding_width, load_tokenizer
from pipeline.perturbation import PerturbationSettings
from pipeline.progress import Counter
from pipeline.seeding import seed_of
from pipeline.shards import codec as codec_code
from pipeline.shards.codec import CodecName
from pipeline.shards.lineage import code_hash, lineage
from pipeline.shards.manifest import Coding, Key, Manifest, Receipt, ShardEntry, check_agreement, manifest_hash
from pipeline.shards.reader import Rows, Shards
from pipeline.shards.schema import FORMAT_VERSION
from pipeline.shards.store import ShardStore
from pipeline.tasks import SPLITS, Split, Task

SCORING_CODE = (encoding, models, jobs_code, teacher_code)
PERTURBING_CODE = (*SCORING_CODE, perturbation, codec_code)
"""What computes a shard's rows; it stands in the key, so that nothing computed by other code is taken from the store."""

AtLeastOne = Annotated[int, Field(ge=1)]


class ScoreSettings(Settings):
    """How the untouched inputs are scored."""

    rows_per_shard: AtLeastOne
    """About how many examples make one shard."""
    batch_rows: AtLeastOne


class AugmentSettings(Settings):
    """What is stored of every training example beside its score."""

    variants: Annotated[int, Field(ge=0)]
    perturbation: PerturbationSettings
    codec: CodecName
    seed: int
    calibration_rows: AtLeastOne
    """Size of the sample on which a radius is found and its effect measured."""
    batch_rows: AtLeastOne


def score(prepared: Path, teacher: Path, settings: ScoreSettings, runtime: RuntimeSettings, out: Path) -> Manifest:
    """Score the untouched inputs of every split and write shards and manifest to ``out``."""
    task = Task.read(prepared)
    store = ShardStore(Path(runtime.store).resolve())
    key: Key = lineage(teacher) | {"content": "scores", "batch_rows": settings.batch_rows, "code": code_hash(*SCORING_CODE)}
    jobs = [
        ScoreJob(partition, key, key["max_length"], settings.batch_rows, store)
        for split in SPLITS
        for partition in _partitions(prepared, split, settings.rows_per_shard)
    ]
    with Cluster(teacher, runtime) as cluster:
        receipts = _finish(f"score {task.name}", jobs, store, cluster)
    truncated = sum(receipt.statistics["truncated"] for receipt in receipts)
    return _publish(out, store, _manifest(task, teacher, key, 0, None, {"truncated": int(truncated)}, jobs, receipts))


def augment(scores: Path, teacher: Path, settings: AugmentSettings, runtime: RuntimeSettings, out: Path) -> Manifest:
    """Perturb the train split in every variant and write shards and manifest to ``out``.

    Raises:
        ShardMismatch: the scores were made with another teacher, tokenizer, label order or format.
    """
    source = Shards(scores)
    key = lineage(teacher)
    check_agreement(f"the scores in {scores}", key, source.manifest.key, "Score again with this teacher: dvc repro")
    # The rows repeat the teacher's logits on the untouched input, whose last digits depend on how they were batched.
    key["score_batch_rows"] = source.manifest.key["batch_rows"]
    store = ShardStore(Path(runtime.store).resolve())
    with Cluster(teacher, runtime) as cluster:
        found = _calibrated(source, key, settings, store, cluster)
        key |= _perturbation_key(settings, found.radius)
        jobs = list(_perturb_jobs(source, key, settings, found.radius, store))
        receipts = _finish(f"augment {source.manifest.task.name}", jobs, store, cluster)
    details = {"radius": found.radius, "calibration": found.plain(), "scores": manifest_hash(scores)}
    coding = Coding(codec=settings.codec, width=embedding_width(teacher))
    task = source.manifest.task
    return _publish(out, store, _manifest(task, teacher, key, settings.variants, coding, details, jobs, receipts))


def _partitions(prepared: Path, split: Split, rows: int) -> list[Partition]:
    table = pq.read_table(prepared / f"{split}.parquet")
    ids = table.column("id").to_pylist()
    return [_partition(split, number, table.slice(run.start, len(run))) for number, run in enumerate(cut(ids, rows))]


def _partition(split: Split, number: int, table: pa.Table) -> Partition:
    columns = table.to_pydict()
    return Partition(split, number, columns["id"], columns["text_a"], columns.get("text_b"), columns["label"])


def _inputs(rows: Rows) -> tuple[Inputs, list[float | int | None]]:
    """The encoded examples of a score shard and their labels as the schema wants them."""
    table = [rows[i] for i in range(len(rows))]
    types = [row.token_type_ids for row in table if row.token_type_ids is not None]
    inputs = Inputs([row.example_id for row in table], [row.input_ids for row in table], types or None)
    return inputs, rows.column("label").to_pylist()


def _calibrated(source: Shards, key: Key, settings: AugmentSettings, store: ShardStore, cluster: Cluster) -> Found:
    """The radius, and what it does to a sample of the train split chosen by the hash of its ids."""
    rows = source.rows("train", 0)
    inputs, _ = _inputs(rows)
    order = np.argsort([seed_of(settings.seed, "calibration", example_id) for example_id in inputs.example_ids])
    chosen = np.sort(order[: settings.calibration_rows])
    sample = inputs.take(chosen)
    note: Key = key | {
        "calibration": settings.model_dump(mode="json", exclude={"variants"}),
        "code": code_hash(*PERTURBING_CODE, calibration_code),
        "examples": hash_of(
            [[example_id, ids.tolist()] for example_id, ids in zip(sample.example_ids, sample.input_ids, strict=True)]
        ),
    }
    known = store.recall(note)
    if known is None:
        logits = rows.matrix("teacher_logits")[chosen]
        job = CalibrationJob(sample, logits, settings.seed, settings.perturbation, settings.codec, settings.batch_rows)
        print(f"augment {source.manifest.task.name}: {job.name}", flush=True)
        ((_, found),) = cluster.run([job])
        store.remember(note, found.plain())
        known = found.plain()
    result = Found(**known)
    print(
        f"augment {source.manifest.task.name}: radius {result.radius:g}; on {result.rows} rows it flips "
        f"{result.flips:.1%} of the teacher's answers, mean divergence {result.divergence:.3g}",
        flush=True,
    )
    return result


def _perturbation_key(settings: AugmentSettings, radius: float) -> Key:
    """What decides the perturbations beside the lineage; the radius is the one found, however it was asked for."""
    search = settings.perturbation.model_dump(mode="json") | {"radius": radius}
    return {
        "content": "perturbations",
        "code": code_hash(*PERTURBING_CODE),
        "perturbation": search,
        "codec": settings.codec,
        "seed": settings.seed,
        "batch_rows": settings.batch_rows,
    }


def _perturb_jobs(source: Shards, key: Key, settings: AugmentSettings, radius: float, store: ShardStore) -> list[PerturbJob]:
    jobs = []
    for entry in source.manifest.of_split("train"):
        rows = source.rows_of(entry)
        inputs, labels = _inputs(rows)
        jobs += [
            PerturbJob(
                inputs=inputs,
                labels=labels,
                clean_logits=rows.matrix("teacher_logits"),
                examples_hash=entry.receipt.key["examples"],
                shared_key=key,
                partition=entry.partition,
                variant=variant,
                seed=settings.seed,
                radius=radius,
                settings=settings.perturbation,
                codec=settings.codec,
                batch_rows=settings.batch_rows,
                store=store,
            )
            for variant in range(1, settings.variants + 1)
        ]
    return sorted(jobs, key=lambda job: (job.variant, job.partition))


def _finish(name: str, jobs: Sequence[ShardJob], store: ShardStore, cluster: Cluster) -> list[Receipt]:
    """A receipt for every job: from the store where it has the shard, else from the workers."""
    receipts = [store.find(job.key) for job in jobs]
    damaged = [job.name for job, receipt in zip(jobs, receipts, strict=True) if receipt is None and store.has_receipt(job.key)]
    if damaged:
        print(f"{name}: damaged in the store, computed again: {', '.join(damaged)}", flush=True)
    missing = [number for number, receipt in enumerate(receipts) if receipt is None]
    print(f"{name}: {len(jobs)} shards, {len(jobs) - len(missing)} in the store, {len(missing)} to compute", flush=True)
    if missing:
        numbers = {id(jobs[number]): number for number in missing}
        with Counter(name, len(missing), "shards") as counter:
            for job, receipt in cluster.run([jobs[number] for number in missing]):
                _check_shared(store, job)
                receipts[numbers[id(job)]] = receipt
                counter.advance(receipt.rows)
    return [receipt for receipt in receipts if receipt is not None]


def _check_shared(store: ShardStore, job: ShardJob) -> None:
    """A worker of another machine may have written to a folder of that machine alone."""
    if not store.receipt_path(job.key).exists():
        raise PipelineError(
            f"{job.name} was computed, but its shard did not reach the store {store.folder}; "
            "set runtime.store to a folder that all nodes of the cluster share"
        )


def _manifest(
    task: Task,
    teacher: Path,
    key: Key,
    variants: int,
    coding: Coding | None,
    details: dict[str, object],
    jobs: Sequence[ShardJob],
    receipts: Sequence[Receipt],
) -> Manifest:
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


def _publish(out: Path, store: ShardStore, manifest: Manifest) -> Manifest:
    """Put exactly the shards of the manifest into ``out``, the manifest last."""
    with folder_written_whole(out) as folder:
        for entry in manifest.shards:
            store.place(entry.receipt.key, folder / entry.file)
        manifest.save(folder)
    print(f"{out}: {len(manifest.shards)} shards, {sum(e.receipt.bytes for e in manifest.shards) / 1e6:,.1f} MB", flush=True)
    return manifest
