"""What the two passes compute: their jobs with keys, in order. The keys of variants need epsilon, which is found first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from pipeline.augment.calibration import Calibration, Found
from pipeline.augment.jobs import ShardJob, candidates_job, places, soft_label_job
from pipeline.augment.recipes import deciding, edit_errors, followed_by
from pipeline.augment.teacher import ModelFolders
from pipeline.augment.variants import VariantSpec, read_labelled, variant_job
from pipeline.config.corpus import SPLITS
from pipeline.config.errors import PipelineError
from pipeline.config.settings import AugmentSettings, InferenceSettings
from pipeline.corpus.seeding import sample
from pipeline.corpus.task import Task
from pipeline.models.folder import ModelFolder
from pipeline.perturbation.surrogate import hashes_in, surrogates_in
from pipeline.shards.manifest import ShardEntry, check_agreement, lineage
from pipeline.shards.reader import Shards
from pipeline.shards.schema import FORMAT_VERSION
from pipeline.store.keys import Key, computed_by, hash_of
from pipeline.store.store import Store
from pipeline.training.masked_lm import masked_lm_in

SOFT_LABELS, VARIANTS, CALIBRATION = (f"pipeline.augment.{name}" for name in ("jobs", "variants", "calibration"))
"""The modules that compute each kind of result; their code is part of its key."""

NO_EPSILON = Found(0.0, 0.0, 0)
"""If no variant is perturbed."""


def soft_label_jobs(prepared: Path, teacher: ModelFolder, settings: InferenceSettings) -> tuple[Key, list[ShardJob]]:
    """The key that all soft labels share, and the jobs of every split; rejects a teacher of another task."""
    wanted, taught = (task.model_dump(exclude={"metric"}) for task in (Task.read(prepared), teacher.task))
    if other := [f"{name} {taught[name]!r} in place of {wanted[name]!r}" for name in wanted if taught[name] != wanted[name]]:
        raise PipelineError(f"{teacher.source} was trained for another task than that in {prepared}: {', '.join(other)}")
    decided = settings.model_dump(include={"batch_size", "precision"})
    key: Key = lineage(teacher) | {"content": "soft_labels", **decided, "computed_by": computed_by(SOFT_LABELS)}
    found = [place for split in SPLITS for place in places(prepared, split, settings.rows_per_shard)]
    return key, [soft_label_job(place, key, settings.batch_size) for place in found]


@dataclass(frozen=True)
class Augmentation:
    """The second pass: variants of the train split of a set of soft labels."""

    source: Shards
    teacher: ModelFolder
    models: ModelFolders
    """The models that the recipes need."""
    settings: AugmentSettings
    key: Key
    """The part that all shards share."""

    @classmethod
    def of(
        cls,
        soft_labels: Path,
        teacher: Path,
        settings: AugmentSettings,
        surrogate: Path | None = None,
        masked_lm: Path | None = None,
        store: Store | None = None,
    ) -> "Augmentation":
        """Check that the outputs of the stages with these names, and the settings, belong together.

        ``store`` has the soft labels if it is remote.

        Raises:
            ShardMismatch: soft labels or surrogate were made with another teacher, tokenizer, label order or format.
            PipelineError: the settings contradict the tokenizer, or a model that they need is missing.
        """
        model = ModelFolder(teacher)
        source, wanted = Shards.holding("soft_labels", soft_labels, store), lineage(model)
        again = "Make them again with this teacher: dvc repro"
        check_agreement(f"the soft labels in {soft_labels}", wanted, source.manifest.key, again)
        task = source.manifest.task
        errors = edit_errors(settings, model.tokenizer, task.pair)
        if settings.uses("masked_lm") and (masked_lm is None or masked_lm_in(masked_lm).model is None):
            errors.append("a recipe contains masked_lm: give the output folder of the stage masked_lm, --masked-lm")
        if settings.needs_surrogate() and surrogate is None:
            errors.append("gradient_from is surrogate: give the output folder of the stage surrogate, --surrogate")
        if errors:
            raise PipelineError("; ".join(errors))
        models = ModelFolders(teacher, settings=settings, teacher_hash=wanted["teacher"])
        if settings.needs_surrogate() and surrogate is not None:
            for one in surrogates_in(surrogate):
                check_agreement(f"the checkpoints of the surrogate in {one.folder}", wanted, one.facts().key, again)
            models = replace(models, surrogate=surrogate, surrogate_hashes=hashes_in(surrogate))
        if settings.uses("masked_lm") and masked_lm is not None:
            models = replace(models, masked_lm=masked_lm, masked_lm_hash=ModelFolder(masked_lm).hash)
        # The rows repeat the teacher's logits on the clean input, whose last digits depend on how they were computed.
        made = {f"soft_label_{name}": source.manifest.key.get(name) for name in ("batch_size", "precision", "computed_by")}
        return cls(source, model, models, settings, wanted | {"content": "variants", **made})

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
        rows, seed = self.source.rows("train", 0), self.settings.seed
        names = chain.from_iterable(chunk.to_pylist() for chunk in rows.column("example_id").chunks)
        labelled = read_labelled(rows, np.array(sample(names, self.settings.calibration_rows, seed, "calibration")))
        examples = zip(labelled.inputs.example_ids, labelled.inputs.input_ids, strict=True)
        decided = self.settings.model_dump(mode="json", include={"perturbation", "codec", "inference", "seed"})
        note: Key = self.key | {
            "content": "calibration",
            "calibration": decided,
            "surrogate": list(self.models.surrogate_hashes),
            "computed_by": computed_by(CALIBRATION),
            "examples": hash_of([[example_id, ids.tolist()] for example_id, ids in examples]),
        }
        alone = self.settings.model_copy(update={"recipes": [["perturb"]]})
        unit = float(labelled.logits.var() or 1.0) if self.source.manifest.task.kind == "regression" else 1.0
        return note, Calibration(labelled, alone, len(self.models.surrogate_hashes), unit)

    def jobs(self, epsilon: float) -> list[ShardJob]:
        """One for each variant and partition, variant by variant."""
        checkpoints, jobs = self.models.surrogate_hashes, []
        for variant, checkpoint in enumerate(followed_by(self.settings, len(checkpoints)), start=1):
            spec = VariantSpec(variant, self.settings, epsilon, checkpoint)
            key = self.key | deciding(self.settings, variant, epsilon)
            key["computed_by"] = computed_by(VARIANTS)
            if "masked_lm" in spec.recipe:
                key["masked_lm"] |= self._candidates_key["masked_lm"]
            if checkpoint is not None:
                key["surrogate"] = checkpoints[checkpoint - 1]
            for entry in self.entries():
                words = candidates_job(entry, self._candidates_key).key if "masked_lm" in spec.recipe else None
                jobs.append(variant_job(entry, spec, key, words))
        return jobs

    def candidates(self, jobs: Sequence[ShardJob]) -> list[ShardJob]:
        """The candidates that these jobs need: one job per partition."""
        needed = {job.partition for job in jobs if "masked_lm" in self.settings.recipe(job.variant)}
        key = self._candidates_key
        return [candidates_job(entry, key) for entry in self.entries() if entry.partition in needed]

    def known_epsilon(self, store: Store) -> float | None:
        """Epsilon if the store has it, 0 if no variant is perturbed; leaves no trace of the look-up."""
        if not self.settings.uses("perturb"):
            return 0.0
        known = store.peek(self.calibration[0])
        return None if known is None else float(known.facts["epsilon"])

    def stored(self, jobs: Sequence[ShardJob]) -> list[Key]:
        """The keys of all store entries of these variants: shards, epsilon, word candidates."""
        found = [self.calibration[0]] if self.settings.uses("perturb") else []
        return [*(job.key for job in jobs), *found, *(job.key for job in self.candidates(jobs))]

    @property
    def _candidates_key(self) -> Key:
        """The part of a key that all candidates share."""
        inference = self.settings.inference
        model = {"model": self.models.masked_lm_hash, "candidates": self.settings.masked_lm.candidates}
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
