"""Train a scout: a small student from the scores alone, with snapshots along its training. Knows what a student knows."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from pipeline.distill.student import make_student
from pipeline.distill.training import StudentSettings, open_scores, train_student
from pipeline.files import folder_written_whole
from pipeline.finetuning import write_history
from pipeline.models import load_tokenizer
from pipeline.scouting import ScoutFacts, ScoutFolder
from pipeline.shards.manifest import manifest_hash


class ScoutSettings(StudentSettings):
    """A scout is a student that learns from untouched inputs, whatever ``augmentation`` says."""

    snapshots: Annotated[int, Field(ge=1)]
    """How many of its states are kept, evenly along its training; variants are aimed at them in turn."""

    @model_validator(mode="after")
    def _can_learn_and_aim(self) -> "ScoutSettings":
        if self.start == "scratch":
            raise ValueError("no map carries the teacher's perturbations to a scout from scratch; set start: teacher")
        if not self.objective.hard + self.objective.soft:
            raise ValueError("a scout learns from untouched inputs, so objective.hard or objective.soft must be above 0")
        return self


def train_scout(scores: Path, teacher: Path, settings: ScoutSettings, out: Path) -> ScoutFacts:
    """Train a scout and write its snapshots to ``out``.

    Raises:
        ShardMismatch: the scores are not this teacher's.
        PipelineError: the scout cannot be built.
    """
    known, tokenizer = open_scores(scores, teacher), load_tokenizer(teacher)
    scout = make_student(teacher, settings, settings.optimiser.seed)
    with folder_written_whole(out) as folder:
        made = ScoutFolder(folder)
        snapshots = [made.snapshot(number) for number in range(1, settings.snapshots + 1)]
        history = train_student(f"scout {known.manifest.task.name}", scout, known, None, settings, snapshots)
        for snapshot in snapshots:
            tokenizer.save_pretrained(snapshot)
        write_history(folder, history)
        facts = ScoutFacts(
            key=known.manifest.key,
            scores=manifest_hash(scores),
            snapshots=settings.snapshots,
            start=scout.facts,
            dev=history[-1]["dev"],
            settings=settings.model_dump(mode="json", exclude_none=True),
        )
        made.save(facts, scout.map)
    return facts
