"""Train a scout: a small student from the scores alone, with snapshots along its training. Knows what a student knows."""

import shutil
from dataclasses import replace
from pathlib import Path

from pipeline.distill.settings import ScoutSettings
from pipeline.distill.training import Sources, train, units_of
from pipeline.models.folder import load_tokenizer
from pipeline.models.loading import load_classifier
from pipeline.models.scale import Scale
from pipeline.perturbation.surrogate import ScoutFacts, ScoutFolder
from pipeline.shards.manifest import manifest_hash
from pipeline.store.files import folder_written_whole
from pipeline.training.callbacks import NO_CHECKPOINTS, RunOptions
from pipeline.training.trainer import write_history


def train_scout(
    scores: Path, teacher: Path, settings: ScoutSettings, out: Path, options: RunOptions = NO_CHECKPOINTS
) -> ScoutFacts:
    """Train a scout and write its snapshots to ``out``; on the way they lie where ``options`` keeps states.

    Raises:
        ShardMismatch: the scores are not this teacher's.
        PipelineError: the scout cannot be built.
    """
    sources, tokenizer = Sources.open(teacher, scores, None), load_tokenizer(teacher)
    with folder_written_whole(out) as folder:
        made, underway = ScoutFolder(folder), ScoutFolder(options.checkpoints or folder / "underway")
        numbers = range(1, settings.snapshots + 1)
        options = replace(options, snapshots=[underway.snapshot(number) for number in numbers])
        scout, fit = train(f"scout {sources.task.name}", sources, settings, options)
        scale = units_of(sources, scout.model)
        for number in numbers:
            _publish(underway.snapshot(number), made.snapshot(number), scale)
            tokenizer.save_pretrained(made.snapshot(number))
        shutil.rmtree(folder / "underway", ignore_errors=True)
        write_history(folder, fit.history)
        facts = ScoutFacts(
            key=sources.scores.manifest.key,
            scores=manifest_hash(scores),
            snapshots=settings.snapshots,
            start=scout.facts,
            dev=fit.history[-1]["dev"],
            settings=settings.model_dump(mode="json", exclude_none=True),
        )
        made.save(facts, scout.map)
    return facts


def _publish(underway: Path, made: Path, scale: Scale | None) -> None:
    """A snapshot is taken in the units of the fit; that of a regression is published with real values."""
    if scale is None:
        shutil.copytree(underway, made)
        return
    model = load_classifier(underway)
    scale.put_into(model)
    model.save_pretrained(made)
