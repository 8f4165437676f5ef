"""Train a scout: a small student from the scores alone, with snapshots along its training. Knows what a student knows."""

from pathlib import Path

from pipeline.conduct import Conduct
from pipeline.distill.settings import ScoutSettings
from pipeline.distill.training import Sources, train
from pipeline.files import folder_written_whole
from pipeline.finetuning import write_history
from pipeline.models.pretrained import load_tokenizer
from pipeline.scouting import ScoutFacts, ScoutFolder
from pipeline.shards.manifest import manifest_hash


def train_scout(scores: Path, teacher: Path, settings: ScoutSettings, out: Path) -> ScoutFacts:
    """Train a scout and write its snapshots to ``out``.

    Raises:
        ShardMismatch: the scores are not this teacher's.
        PipelineError: the scout cannot be built.
    """
    sources, tokenizer = Sources.open(teacher, scores, None), load_tokenizer(teacher)
    with folder_written_whole(out) as folder:
        made = ScoutFolder(folder)
        snapshots = [made.snapshot(number) for number in range(1, settings.snapshots + 1)]
        scout, fit = train(f"scout {sources.task.name}", sources, settings, Conduct(snapshots=snapshots))
        for snapshot in snapshots:
            tokenizer.save_pretrained(snapshot)
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
