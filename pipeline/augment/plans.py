"""What the two passes are to compute: the jobs with their keys, in order. Knows settings and hashes; computes no model.

The epsilon of the perturbations is the one thing that must be found before the keys are known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from pipeline.augment.calibration import Calibration, Found
from pipeline.augment.partition import places
from pipeline.augment.recipes import deciding, edit_errors, followed_by, kind_errors
from pipeline.augment.soft_labels import CandidatesJob, SoftLabelJob, SoftLabelShard
from pipeline.augment.variant_jobs import VariantJob, read_labelled
from pipeline.augment.variants import LabelledRows, VariantSpec
from pipeline.config.corpus import SPLITS
from pipeline.config.errors import PipelineError
from pipeline.config.settings import AugmentSettings, InferenceSettings
from pipeline.corpus.seeding import sample
from pipeline.corpus.task import Task
from pipeline.models.folder import load_tokenizer, model_hash
from pipeline.perturbation.surrogate import SurrogateFolder
from pipeline.shards.manifest import SHARD_FILE, ShardEntry, check_agreement, lineage
from pipeline.shards.reader import Shards
from pipeline.shards.schema import FORMAT_VERSION
from pipeline.store.keys import Key, computed_by, hash_of
from pipeline.store.store import Store
from pipeline.training.masked_lm import masked_lm_in

SOFT_LABELS, VARIANTS, CALIBRATION = (f"pipeline.augment.{name}" for name in ("soft_labels", "variant_jobs", "calibration"))
"""The modules that compute each kind of result; their code stands in its key."""


def soft_label_jobs(prepared: Path, teacher: Path, settings: InferenceSettings) -> tuple[Key, list[SoftLabelJob]]:
    """The key that all soft_labels share, and the jobs of every split.

    Raises:
        PipelineError: the teacher was made for another task.
    """
    _check_task(prepared, teacher)
    decided = settings.model_dump(include={"batch_size", "precision"})
    key: Key = lineage(teacher) | {"content": "soft_labels", **decided, "computed_by": computed_by(SOFT_LABELS)}
    jobs = [
        SoftLabelJob(place, key, settings.batch_size)
        for split in SPLITS
        for place in places(prepared, split, settings.rows_per_shard)
    ]
    return key, jobs


def _check_task(prepared: Path, teacher: Path) -> None:
    wanted, taught = (Task.read(folder).model_dump(exclude={"metric"}) for folder in (prepared, teacher))
    other = [f"{name} {taught[name]!r} in place of {wanted[name]!r}" for name in wanted if taught[name] != wanted[name]]
    if other:
        raise PipelineError(f"{teacher} was taught another task than that in {prepared}: {', '.join(other)}")


@dataclass(frozen=True)
class Augmentation:
    """The second pass: variants of the train split of a set of soft_labels."""

    source: Shards
    settings: AugmentSettings
    checkpoints: tuple[str, ...]
    """Hashes of the surrogate's checkpoints; empty where the teacher's own gradient is followed."""
    key: Key
    """What all shards share, whatever their recipe."""
    masked_lm: Path | None = None
    """Where the masked language model lies, where there is one."""

    @classmethod
    def of(
        cls,
        soft_labels: Path,
        teacher: Path,
        settings: AugmentSettings,
        surrogate: Path | None = None,
        masked_lm: Path | None = None,
    ) -> "Augmentation":
        """Check that all that is given belongs together.

        Args:
            soft_labels: what ``soft_label`` wrote.
            teacher: what ``teach`` wrote.
            settings: of the variants.
            surrogate: what ``surrogate`` wrote; needed if variants follow its gradient.
            masked_lm: what ``masked_lm`` wrote; needed if a recipe contains masked_lm.

        Raises:
            ShardMismatch: the soft_labels, or the surrogate, were made with another teacher, tokenizer, label order or format.
            PipelineError: the settings contradict the task or the tokenizer, or a model that they need is missing.
        """
        source, wanted = Shards.holding("soft_labels", soft_labels), lineage(teacher)
        check_agreement(
            f"the soft_labels in {soft_labels}", wanted, source.manifest.key, "Make them again for this teacher: dvc repro"
        )
        task = source.manifest.task
        errors = kind_errors(settings, task.kind) + edit_errors(settings, load_tokenizer(teacher), task.pair)
        if settings.uses("masked_lm") and (masked_lm is None or masked_lm_in(masked_lm).model is None):
            errors.append("a recipe contains masked_lm: give the folder that the stage masked_lm wrote, --masked-lm")
        if settings.needs_surrogate() and surrogate is None:
            errors.append("gradient_from is surrogate: give the folder that the stage surrogate wrote, --surrogate")
        if errors:
            raise PipelineError("; ".join(errors))
        checkpoints: tuple[str, ...] = ()
        if settings.needs_surrogate() and surrogate is not None:
            found = SurrogateFolder(surrogate).facts().key
            check_agreement(
                f"the checkpoints of the surrogate in {surrogate}", wanted, found, "Make it again with this teacher: dvc repro"
            )
            checkpoints = SurrogateFolder(surrogate).hashes()
        # The rows repeat the teacher's logits on the clean input, whose last digits depend on how they were computed.
        made = {f"soft_label_{name}": source.manifest.key.get(name) for name in ("batch_size", "precision", "computed_by")}
        key = wanted | {"content": "variants", **made}
        return cls(source, settings, checkpoints, key, masked_lm if settings.uses("masked_lm") else None)

    @property
    def masked_lm_hash(self) -> str | None:
        """That which keys name the masked language model by; None where no recipe asks for one."""
        return str(self._candidates_key["masked_lm"]["model"]) if self.settings.uses("masked_lm") else None

    @property
    def name(self) -> str:
        """What progress lines call it."""
        return f"augment {self.source.manifest.task.name}"

    def entries(self) -> Sequence[ShardEntry]:
        """The score shards that become variants."""
        return self.source.manifest.of_split("train")

    @cached_property
    def calibration(self) -> tuple[Key, Calibration]:
        """How the epsilon is found on a sample of the train split chosen by the hash of its ids, and under which key."""
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
        return note, Calibration(labelled, self.settings, len(self.checkpoints) or None)

    def jobs(self, epsilon: float, store: Store) -> list[VariantJob]:
        """One for each variant and partition, variant by variant."""
        decided = {variant: self._deciding(variant, epsilon) for variant in range(1, self.settings.variants + 1)}
        return [
            VariantJob(
                soft_labels=SoftLabelShard(self.source, entry),
                shared_key=self.key,
                deciding=decided[variant],
                spec=VariantSpec(variant, self.settings, epsilon, self._checkpoint(variant)),
                candidates=self._candidates_path(variant, entry, store),
            )
            for variant in decided
            for entry in self.entries()
        ]

    def candidates(self, jobs: Sequence[VariantJob]) -> list[CandidatesJob]:
        """What must be known before these jobs can replace words: one job a partition."""
        needed = {job.partition for job in jobs if job.candidates is not None}
        return [self._candidates_job(entry) for entry in self.entries() if entry.partition in needed]

    def stored(self, jobs: Sequence[VariantJob]) -> list[Key]:
        """The keys of everything in the store behind these variants: shards, the epsilon found, word candidates."""
        found = [self.calibration[0]] if self.settings.uses("perturb") else []
        needed = {job.partition for job in jobs if job.candidates is not None}
        candidates = [self._candidates_job(entry) for entry in self.entries() if entry.partition in needed]
        return [*(job.key for job in jobs), *found, *(job.key for job in candidates)]

    def _deciding(self, variant: int, epsilon: float) -> Key:
        recipe = self.settings.recipe(variant)
        key = deciding(self.settings, variant, epsilon) | {"computed_by": computed_by(VARIANTS)}
        if "masked_lm" in recipe:
            key["masked_lm"] = key["masked_lm"] | self._candidates_key["masked_lm"]
        if (checkpoint := self._checkpoint(variant)) is not None:
            key["surrogate"] = self.checkpoints[checkpoint - 1]
        return key

    def _checkpoint(self, variant: int) -> int | None:
        return followed_by(self.settings, len(self.checkpoints))[variant - 1]

    @cached_property
    def _candidates_key(self) -> Key:
        """What decides the words that a masked language model proposes; not the share that is replaced.

        Found once: it takes reading the whole model.
        """
        assert self.masked_lm is not None, "a plan with such a recipe has a model"
        inference = self.settings.inference
        model = {"model": model_hash(self.masked_lm), "candidates": self.settings.masked_lm.candidates}
        return {
            "format_version": FORMAT_VERSION,
            "content": "candidates",
            "tokenizer": self.key["tokenizer"],
            "max_length": self.key["max_length"],  # what is proposed stands at places of the text as it was cut
            "masked_lm": model,
            "batch_size": inference.batch_size,
            "precision": inference.precision,
            "computed_by": computed_by(SOFT_LABELS),
        }

    def _candidates_job(self, entry: ShardEntry) -> CandidatesJob:
        return CandidatesJob(SoftLabelShard(self.source, entry), self._candidates_key)

    def _candidates_path(self, variant: int, entry: ShardEntry, store: Store) -> Path | None:
        if "masked_lm" not in self.settings.recipe(variant):
            return None
        return store.folder_of(self._candidates_job(entry).key) / SHARD_FILE

    def _sample(self) -> LabelledRows:
        """The examples whose ids have the smallest hashes, in the order of the corpus."""
        entries = self.entries()
        names = chain.from_iterable(self.source.rows_of(entry).column("example_id").to_pylist() for entry in entries)
        drawn = np.array(sample(names, self.settings.calibration_rows, self.settings.seed, "calibration"))
        ends = np.cumsum([entry.receipt.rows for entry in entries])
        rows = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
        begins = ends - [entry.receipt.rows for entry in entries]
        found = [(entry, inside - begin) for entry, inside, begin in zip(entries, rows, begins, strict=True) if len(inside)]
        return LabelledRows.joined(
            [read_labelled(SoftLabelShard(self.source, entry))[0].take(inside) for entry, inside in found]
        )


def no_epsilon() -> Found:
    """What stands for the epsilon where no variant is perturbed."""
    return Found(0.0, 0.0, 0.0, 0)
