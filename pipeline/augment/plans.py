"""What the two passes are to compute: the jobs with their keys, in order. Knows settings and hashes; computes no model.

The radius of the perturbations is the one thing that must be found before the keys are known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import ModuleType

import numpy as np

from pipeline.augment import batches as batches_code
from pipeline.augment import calibration as calibration_code
from pipeline.augment import columns as columns_code
from pipeline.augment import inputs as inputs_code
from pipeline.augment import jobs as jobs_code
from pipeline.augment import masked_lm as masked_lm_code
from pipeline.augment import model_set as model_set_code
from pipeline.augment import teacher as teacher_code
from pipeline.augment import text_edits as text_edits_code
from pipeline.augment import variants as variants_code
from pipeline.augment import words as words_code
from pipeline.augment.calibration import Calibration, Found
from pipeline.augment.faults import aim_faults, edit_faults, kind_faults, words_faults
from pipeline.augment.jobs import CandidatesJob, ScoreJob, ScoreShard, VariantJob
from pipeline.augment.partition import places
from pipeline.augment.recipes import AugmentSettings, ScoreSettings, Step
from pipeline.augment.text_edits import OPERATIONS
from pipeline.augment.variants import Making, Scored
from pipeline.config.errors import PipelineError
from pipeline.corpus import encoding
from pipeline.corpus.task import SPLITS, Task
from pipeline.models import architectures, folder, forward, loading
from pipeline.models.folder import depth_of, load_tokenizer, model_hash
from pipeline.perturbation import inputs as views
from pipeline.perturbation import search as perturbation
from pipeline.perturbation import surrogate as scouting
from pipeline.perturbation.surrogate import ScoutFolder
from pipeline.shards import codec as codec_code
from pipeline.shards import reader as reader_code
from pipeline.shards import writer as writer_code
from pipeline.shards.lineage import lineage
from pipeline.shards.manifest import Key, ShardEntry, check_agreement
from pipeline.shards.reader import Shards
from pipeline.shards.schema import FORMAT_VERSION
from pipeline.shards.store import ShardStore
from pipeline.store import seeding
from pipeline.store.files import hash_of
from pipeline.store.sampling import sample
from pipeline.store.sources import BUILD
from pipeline.training.masked_lm import words_in

SCORING_CODE = (
    architectures, batches_code, columns_code, encoding, forward, inputs_code, jobs_code, model_set_code, folder, loading,
    reader_code, seeding, teacher_code, views, writer_code,
)  # fmt: skip
"""What computes a shard's rows; it stands in the key, so that nothing computed by other code is taken from the store."""


def scoring(prepared: Path, teacher: Path, settings: ScoreSettings) -> tuple[Key, list[ScoreJob]]:
    """The key that all scores share, and the jobs of every split.

    Raises:
        PipelineError: the teacher was made for another task, or lacks layers whose states are to be kept.
    """
    _check_task(prepared, teacher)
    _check_layers(teacher, settings.hidden)
    decided = settings.model_dump(include={"batch_rows", "precision", "hidden"})
    key: Key = lineage(teacher) | {"content": "scores", **decided, "computed_by": BUILD.naming(*SCORING_CODE)}
    jobs = [
        ScoreJob(place, key, settings.batch_rows)
        for split in SPLITS
        for place in places(prepared, split, settings.rows_per_shard)
    ]
    return key, jobs


def _check_task(prepared: Path, teacher: Path) -> None:
    wanted, taught = (Task.read(folder).model_dump(exclude={"metric"}) for folder in (prepared, teacher))
    other = [f"{name} {taught[name]!r} in place of {wanted[name]!r}" for name in wanted if taught[name] != wanted[name]]
    if other:
        raise PipelineError(f"{teacher} was taught another task than that in {prepared}: {', '.join(other)}")


def _check_layers(teacher: Path, wanted: list[int]) -> None:
    depth = depth_of(teacher)
    if sorted(set(wanted)) != wanted or wanted[-1:] > [depth]:
        raise PipelineError(
            f"score.hidden: {wanted} cannot be kept of a teacher of {depth} layers; give different layers from 1 to {depth} in "
            "rising order, or [] for none"
        )


@dataclass(frozen=True)
class Augmentation:
    """The second pass: variants of the train split of a set of scores."""

    source: Shards
    settings: AugmentSettings
    snapshots: tuple[str, ...]
    """Hashes of the scout's snapshots; empty where the teacher's own gradient is followed."""
    key: Key
    """What all shards share, whatever their recipe."""
    masked_lm: Path | None = None
    """Where the masked language model lies, where there is one."""

    @classmethod
    def of(
        cls, scores: Path, teacher: Path, scout: Path | None, settings: AugmentSettings, words: Path | None = None
    ) -> "Augmentation":
        """Check that all that is given belongs together.

        Args:
            scores: what ``score`` wrote.
            teacher: what ``teach`` wrote.
            scout: what ``scout`` wrote, where perturbations are aimed at one.
            settings: what the variants are.
            words: what ``words`` wrote, where a recipe asks for a masked language model.

        Raises:
            ShardMismatch: the scores, or the scout, were made with another teacher, tokenizer, label order or format.
            PipelineError: the objective needs a scout and there is none, or the other way round.
        """
        source, wanted = Shards.holding("scores", scores), lineage(teacher)
        check_agreement(f"the scores in {scores}", wanted, source.manifest.key, "Score again with this teacher: dvc repro")
        contrary = kind_faults(settings, source.manifest.task.kind, scout is not None)
        edits = edit_faults(settings, load_tokenizer(teacher), source.manifest.task.pair)
        proposes = None if words is None else words_in(words).model is not None
        missing = words_faults(settings, proposes)
        if faults := [*aim_faults(settings, scout is not None), *contrary, *edits, *missing]:
            raise PipelineError("; ".join(faults))
        snapshots: tuple[str, ...] = ()
        if scout is not None:
            found = ScoutFolder(scout).facts().key
            check_agreement(
                f"the snapshots of the scout in {scout}", wanted, found, "Make it again with this teacher: dvc repro"
            )
            snapshots = ScoutFolder(scout).hashes()
        # The rows repeat the teacher's logits on the untouched input, whose last digits depend on how they were computed.
        made = {f"score_{name}": source.manifest.key.get(name) for name in ("batch_rows", "precision", "computed_by")}
        key = wanted | {"content": "perturbations", **made}
        return cls(source, settings, snapshots, key, words if proposes else None)

    @property
    def masked_lm_hash(self) -> str | None:
        """That which keys name the masked language model by; None where no recipe asks for one."""
        return str(self._candidates_key["masked_lm"]["model"]) if self.settings.proposes() else None

    @property
    def name(self) -> str:
        """What progress lines call it."""
        return f"augment {self.source.manifest.task.name}"

    def entries(self) -> Sequence[ShardEntry]:
        """The score shards that become variants."""
        return self.source.manifest.of_split("train")

    @cached_property
    def calibration(self) -> tuple[Key, Calibration]:
        """How the radius is found on a sample of the train split chosen by the hash of its ids, and under which key."""
        scored = self._sample()
        labels = [None if np.isnan(label) else float(label) for label in scored.labels]
        rows = zip(scored.inputs.example_ids, scored.inputs.input_ids, labels, strict=True)
        decided = self.settings.model_dump(mode="json", include={"perturbation", "codec", "precision", "seed", "batch_rows"})
        note: Key = self.key | {
            "calibration": decided,
            "scout": list(self.snapshots),
            "computed_by": BUILD.naming(*_code_of(["perturb"]), calibration_code),
            "examples": hash_of([[example_id, ids.tolist(), label] for example_id, ids, label in rows]),
        }
        return note, Calibration(scored, self.settings, len(self.snapshots) or None)

    def jobs(self, radius: float, store: ShardStore) -> list[VariantJob]:
        """One for each variant and partition, variant by variant."""
        decided = {variant: self._deciding(variant, radius) for variant in range(1, self.settings.variants + 1)}
        return [
            VariantJob(
                scores=ScoreShard(self.source, entry),
                shared_key=self.key,
                deciding=decided[variant],
                making=Making(variant, self.settings, radius, self._snapshot(variant)),
                candidates=self._candidates_path(variant, entry, store),
            )
            for variant in decided
            for entry in self.entries()
        ]

    def candidates(self, jobs: Sequence[VariantJob]) -> list[CandidatesJob]:
        """What must be known before these jobs can replace words: one job a partition."""
        needed = {job.partition for job in jobs if job.candidates is not None}
        return [self._candidates_job(entry) for entry in self.entries() if entry.partition in needed]

    def _deciding(self, variant: int, radius: float) -> Key:
        recipe = self.settings.recipe(variant)
        key = self.settings.deciding(variant, radius) | {"computed_by": BUILD.naming(*_code_of(recipe))}
        if "masked_lm" in recipe:
            key["masked_lm"] = key["masked_lm"] | self._candidates_key["masked_lm"]
        if (snapshot := self._snapshot(variant)) is not None:
            key["scout"] = self.snapshots[snapshot - 1]
        return key

    def _snapshot(self, variant: int) -> int | None:
        return self.settings.aimed_at(len(self.snapshots))[variant - 1]

    @cached_property
    def _candidates_key(self) -> Key:
        """What decides the words that a masked language model proposes; not the share that is replaced.

        Found once: it takes reading the whole model.
        """
        assert self.settings.masked_lm is not None, "settings with such a recipe say how many words"
        assert self.masked_lm is not None, "a plan with such a recipe has a model"
        decided = self.settings.masked_lm.model_dump(include={"candidates", "batch_rows"})
        model = {"model": model_hash(self.masked_lm), **decided}
        return {
            "format_version": FORMAT_VERSION,
            "content": "candidates",
            "tokenizer": self.key["tokenizer"],
            "max_length": self.key["max_length"],  # what is proposed stands at places of the text as it was cut
            "masked_lm": model,
            "precision": self.settings.precision,
            "computed_by": BUILD.naming(
                architectures,
                batches_code,
                encoding,
                forward,
                masked_lm_code,
                model_set_code,
                folder,
                loading,
                reader_code,
                text_edits_code,
                words_code,
                writer_code,
            ),
        }

    def _candidates_job(self, entry: ShardEntry) -> CandidatesJob:
        return CandidatesJob(ScoreShard(self.source, entry), self._candidates_key)

    def _candidates_path(self, variant: int, entry: ShardEntry, store: ShardStore) -> Path | None:
        if "masked_lm" not in self.settings.recipe(variant):
            return None
        return store.shard_path(self._candidates_job(entry).key)

    def _sample(self) -> Scored:
        """The examples whose ids have the smallest hashes, in the order of the corpus."""
        entries = self.entries()
        names = chain.from_iterable(self.source.rows_of(entry).column("example_id").to_pylist() for entry in entries)
        drawn = np.array(sample(names, self.settings.calibration_rows, self.settings.seed, "calibration"))
        ends = np.cumsum([entry.receipt.rows for entry in entries])
        rows = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
        begins = ends - [entry.receipt.rows for entry in entries]
        found = [(entry, inside - begin) for entry, inside, begin in zip(entries, rows, begins, strict=True) if len(inside)]
        return Scored.joined([ScoreShard(self.source, entry).read()[0].take(inside) for entry, inside in found])


def no_radius() -> Found:
    """What stands for the radius where no variant is perturbed."""
    return Found(0.0, 0.0, 0.0, 0)


def _code_of(recipe: Sequence[Step]) -> list[ModuleType]:
    """The modules that decide the bytes of a variant; every row tells its divergence, which is defined beside the search."""
    found = [*SCORING_CODE, variants_code, perturbation]
    found += [codec_code, scouting] if "perturb" in recipe else []
    found += [text_edits_code] if set(recipe) & {*OPERATIONS, "masked_lm"} else []
    return found + ([masked_lm_code, words_code] if "masked_lm" in recipe else [])
