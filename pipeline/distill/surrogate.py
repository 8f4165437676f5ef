"""The surrogate: a small student trained on the soft labels only, with checkpoints along its training."""

import shutil
from dataclasses import replace
from pathlib import Path

from pipeline.config.settings import SurrogateSettings
from pipeline.distill.training import Sources, train, units_of
from pipeline.models.folder import ModelFolder
from pipeline.models.forward import Scale
from pipeline.models.loading import load_classifier
from pipeline.perturbation.surrogate import SurrogateFacts, SurrogateFolder
from pipeline.shards.manifest import lineage, training_hash
from pipeline.store.files import folder_written_whole
from pipeline.store.store import Facts, Store
from pipeline.training.callbacks import NO_CHECKPOINTS, RunOptions
from pipeline.training.trainer import write_history


def train_surrogate(
    soft_labels: Path,
    teacher: ModelFolder,
    settings: SurrogateSettings,
    out: Path,
    options: RunOptions = NO_CHECKPOINTS,
    store: Store | None = None,
) -> Facts:
    """Train a surrogate and write its checkpoints to ``out``; ``store`` has the soft labels if it is remote.

    The result is a summary of its facts.

    Raises:
        ShardMismatch: the soft labels belong to another teacher.
        PipelineError: the surrogate cannot be built.
    """
    sources = Sources.open(teacher, soft_labels, None, store)
    with folder_written_whole(out) as folder:
        made, underway = SurrogateFolder(folder), SurrogateFolder(options.checkpoints or folder / "underway")
        numbers = range(1, settings.checkpoints + 1)
        options = replace(options, surrogate_checkpoints=[underway.checkpoint(number) for number in numbers])
        surrogate, fit = train(f"surrogate {sources.task.name}", sources, settings, options)
        scale = units_of(sources, surrogate.model)
        for number in numbers:
            _publish(underway.checkpoint(number), made.checkpoint(number), scale)
            teacher.tokenizer.save_pretrained(made.checkpoint(number))
        shutil.rmtree(folder / "underway", ignore_errors=True)
        write_history(folder, fit.history)
        facts = SurrogateFacts(
            key=lineage(teacher),
            soft_labels=training_hash(soft_labels),
            checkpoints=settings.checkpoints,
            start=surrogate.facts,
            dev=fit.history[-1]["dev"],
            settings=settings.model_dump(mode="json", exclude_none=True),
        )
        made.save(facts, surrogate.map)
    return facts.summary()


def _publish(underway: Path, made: Path, scale: Scale | None) -> None:
    """Copy a checkpoint; that of a regression is converted from training units to the labels' units."""
    if scale is None:
        shutil.copytree(underway, made)
        return
    model = load_classifier(ModelFolder(underway))
    scale.put_into(model)
    model.save_pretrained(made)
