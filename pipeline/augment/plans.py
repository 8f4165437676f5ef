"""What the two passes compute: their jobs with keys, in order. The keys of variants need epsilon, which is found first."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from pipeline.augment.calibration import Calibration, Found
from pipeline.augment.jobs import CandidatesJob, SoftLabelJob, SoftLabelShard, places
from pipeline.augment.recipes import deciding, edit_errors, followed_by, kind_errors
from pipeline.augment.variants import LabelledRows, VariantJob, VariantSpec, read_labelled
from pipeline.config.corpus import SPLITS
from pipeline.config.errors import PipelineError
from pipeline.config.settings import AugmentSettings, InferenceSettings
from pipeline.corpus.seeding import sample
from pipeline.corpus.task import Task
from pipeline.models.folder import ModelFolder
from pipeline.perturbation.surrogate import SurrogateFolder
from pipeline.shards.manifest import SHARD_FILE, ShardEntry, check_agreement, lineage
from pipeline.shards.reader import Shards
from pipeline.shards.schema import FORMAT_VERSION
from pipeline.store.code import computed_by
from pipeline.store.hashing import Key, hash_of
from pipeline.store.store import Store
from pipeline.training.masked_lm import masked_lm_in

SOFT_LABELS, VARIANTS, CALIBRATION = (f"pipeline.augment.{name}" for name in ("jobs", "variants", "calibration"))
"""The modules that compute each kind of result; their code is part of its key."""

NO_EPSILON = Found(0.0, 0.0, 0.0, 0)
"""If no variant is perturbed."""


def soft_label_jobs(prepared: Path, teacher: Path, settings: InferenceSettings) -> tuple[Key, list[SoftLabelJob]]:
    """The key that all soft labels share, and the jobs of every split.

    Raises:
        PipelineError: the teacher was made for another task.
    """
    wanted, taught = (Task.read(folder).model_dump(exclude={"metric"}) for folder in (prepared, teacher))
    if other := [f"{name} {taught[name]!r} in place of {wanted[name]!r}" for name in wanted if taught[name] != wanted[name]]:
        raise PipelineError(f"{teacher} was trained for another task than that in {prepared}: {', '.join(other)}")
    decided = settings.model_dump(include={"batch_size", "precision"})
    key: Key = lineage(teacher) | {"content": "soft_labels", **decided, "computed_by": computed_by(SOFT_LABELS)}
    jobs = [
        SoftLabelJob(place, key, settings.batch_size)
        for split in SPLITS
        for place in places(prepared, split, settings.rows_per_shard)
    ]
    return key, jobs


@dataclass(frozen=True)
class Augmentation:
    """The second pass: variants of the train split of a set of soft labels."""

    source: Shards
    teacher: ModelFolder
    settings: AugmentSettings
    checkpoints: tuple[str, ...]
    """Hashes of the surrogate's checkpoints; empty if the teacher's own gradient is followed."""
    key: Key
    """The part that all shards share, whatever their recipe."""
    masked_lm: Path | None
    """Output of ``masked_lm``, if a recipe needs it."""

    @classmethod
    def of(
        cls,
        soft_labels: Path,
        teacher: Path,
        settings: AugmentSettings,
        surrogate: Path | None = None,
        masked_lm: Path | None = None,
    ) -> "Augmentation":
        """Check that the outputs of the stages with these names, and the settings, belong together.

        Raises:
            ShardMismatch: soft labels or surrogate were made with another teacher, tokenizer, label order or format.
            PipelineError: the settings contradict the task or the tokenizer, or a model that they need is missing.
        """
        model = ModelFolder(teacher)
        source, wanted = Shards.holding("soft_labels", soft_labels), lineage(model)
        again = "Make them again with this teacher: dvc repro"
        check_agreement(f"the soft labels in {soft_labels}", wanted, source.manifest.key, again)
        task = source.manifest.task
        errors = kind_errors(settings, task.kind) + edit_errors(settings, model.tokenizer, task.pair)
        if settings.uses("masked_lm") and (masked_lm is None or masked_lm_in(masked_lm).model is None):
            errors.append("a recipe contains masked_lm: give the output folder of the stage masked_lm, --masked-lm")
        if settings.needs_surrogate() and surrogate is None:
            errors.append("gradient_from is surrogate: give the output folder of the stage surrogate, --surrogate")
        if errors:
            raise PipelineError("; ".join(errors))
        checkpoints: tuple[str, ...] = ()
        if settings.needs_surrogate() and surrogate is not None:
            folder = SurrogateFolder(surrogate)
            check_agreement(f"the checkpoints of the surrogate in {surrogate}", wanted, folder.facts().key, again)
            checkpoints = folder.hashes()
        # The rows repeat the teacher's logits on the clean input, whose last digits depend on how they were computed.
        made = {f"soft_label_{name}": source.manifest.key.get(name) for name in ("batch_size", "precision", "computed_by")}
        key = wanted | {"content": "variants", **made}
        return cls(source, model, settings, checkpoints, key, masked_lm if settings.uses("masked_lm") else None)

    @property
    def masked_lm_hash(self) -> str | None:
        """The masked language model's hash in keys; None if no recipe needs one."""
        return str(self._candidates_key["masked_lm"]["model"]) if self.settings.uses("masked_lm") else None

    @property
    def name(self) -> str:
        """For progress lines."""
        return f"augment {self.source.manifest.task.name}"

    def entries(self) -> Sequence[ShardEntry]:
        """The shards of soft labels of the train split."""
        return self.source.manifest.of_split("train")

    @cached_property
    def calibration(self) -> tuple[Key, Calibration]:
        """The key of epsilon, and the sample of the train split, drawn by hashes of ids, on which it is found."""
        labelled = self._sample()
        rows = zip(labelled.inputs.example_ids, labelled.inputs.input_ids, strict=True)
        decided = self.settings.model_dump(mode="json", include={"perturbation", "codec", "inference", "seed"})
        note: Key = self.key | {
            "content": "calibration",
            "calibration": decided,
            "surrogate": list(self.checkpoints),
            "computed_by": computed_by(CALIBRATION),
            "examples": hash_of([[example_id, ids.tolist()] for example_id, ids in rows]),
        }
        return note, Calibration(labelled, self.settings, len(self.checkpoints))

    def jobs(self, epsilon: float, store: Store) -> list[VariantJob]:
        """One for each variant and partition, variant by variant."""
        shards = [SoftLabelShard(self.source, entry) for entry in self.entries()]
        jobs = []
        for variant, checkpoint in enumerate(followed_by(self.settings, len(self.checkpoints)), start=1):
            spec = VariantSpec(variant, self.settings, epsilon, checkpoint)
            decided = deciding(self.settings, variant, epsilon) | {"computed_by": computed_by(VARIANTS)}
            if "masked_lm" in spec.recipe:
                decided["masked_lm"] |= self._candidates_key["masked_lm"]
            if checkpoint is not None:
                decided["surrogate"] = self.checkpoints[checkpoint - 1]
            for shard in shards:
                words = store.folder_of(self._candidates_job(shard).key) / SHARD_FILE if "masked_lm" in spec.recipe else None
                jobs.append(VariantJob(shard, self.key, decided, spec, words))
        return jobs

    def candidates(self, jobs: Sequence[VariantJob]) -> list[CandidatesJob]:
        """The candidates that these jobs need: one job per partition."""
        needed = {job.partition: job.soft_labels for job in jobs if job.candidates is not None}
        return [self._candidates_job(needed[partition]) for partition in sorted(needed)]

    def known_epsilon(self, store: Store) -> float | None:
        """Epsilon if the store has it, 0 if no variant is perturbed; leaves no trace of the look-up."""
        if not self.settings.uses("perturb"):
            return 0.0
        known = store.peek(self.calibration[0])
        return None if known is None else float(known.facts["epsilon"])

    def stored(self, jobs: Sequence[VariantJob]) -> list[Key]:
        """The keys of all store entries behind these variants: shards, epsilon, word candidates."""
        found = [self.calibration[0]] if self.settings.uses("perturb") else []
        return [*(job.key for job in jobs), *found, *(job.key for job in self.candidates(jobs))]

    def _candidates_job(self, shard: SoftLabelShard) -> CandidatesJob:
        return CandidatesJob(shard, self._candidates_key)

    @cached_property
    def _candidates_key(self) -> Key:
        """The part of a key that all candidates share."""
        assert self.masked_lm is not None, "a plan with such a recipe has a model"
        inference = self.settings.inference
        model = {"model": ModelFolder(self.masked_lm).hash, "candidates": self.settings.masked_lm.candidates}
        return {
            "format_version": FORMAT_VERSION,
            "content": "candidates",
            "tokenizer": self.key["tokenizer"],
            "max_length": self.key["max_length"],  # of the texts whose words have candidates
            "masked_lm": model,
            "batch_size": inference.batch_size,
            "precision": inference.precision,
            "computed_by": computed_by(SOFT_LABELS),
        }

    def _sample(self) -> LabelledRows:
        """The examples whose ids have the smallest hashes, in the order of the corpus."""
        shards = [SoftLabelShard(self.source, entry) for entry in self.entries()]
        names = chain.from_iterable(shard.rows().column("example_id").to_pylist() for shard in shards)
        drawn = np.array(sample(names, self.settings.calibration_rows, self.settings.seed, "calibration"))
        ends = np.cumsum([shard.entry.receipt.rows for shard in shards])
        parts = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
        return LabelledRows.joined(
            [
                read_labelled(shard)[0].take(part - (end - shard.entry.receipt.rows))
                for shard, part, end in zip(shards, parts, ends, strict=True)
                if len(part)
            ]
        )
