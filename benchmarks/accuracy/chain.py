"""One run of the suite through the stages of the pipeline, in this process. Knows commands and folders; no arm by name."""

import fcntl
import json
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pyarrow.parquet as pq

from benchmarks.accuracy.arms import LAYERS, STORE, STUDENT, TEACHER, TEACHER_STEPS, Models, Run, all_arms
from benchmarks.accuracy.corpora import corpus_settings, cut, data_hash
from benchmarks.accuracy.online import GradientOwner, train_online
from benchmarks.accuracy.results import Curve, Result
from benchmarks.accuracy.tinybert import train_layers
from pipeline.config import params as config
from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.config.sections import augment_places, student_places
from pipeline.config.settings import AugmentSettings, StudentSettings, TrainingSettings
from pipeline.distill.training import Sources
from pipeline.evaluation.quality import QUALITY_FILE, Qualities
from pipeline.models.folder import ModelFolder
from pipeline.shards.manifest import SHARD_FILE, Manifest, manifest_hash
from pipeline.store.files import write_json
from pipeline.store.keys import BUILD, canonical_json, hash_of, key_hash
from pipeline.store.store import Store
from pipeline.training.trainer import HISTORY_FILE
from stages import augment, distill, evaluate, masked_lm, prepare, soft_label, surrogate, teach

COST, LAYERS_COST = "cost.json", "layers_cost.json"
"""Of a run's folder: what its training took, and what its first phase did, where it has one."""


@dataclass(frozen=True)
class Place:
    """Where the suite works: the labelled sets, the pretrained models, and a folder for what it makes."""

    data: Path
    models: Models
    work: Path


class OnlineNeeds(Settings):
    """What an arm with the teacher in the loop reads of its parameter file."""

    student: StudentSettings
    augment: AugmentSettings


class LayersNeeds(Settings):
    """What the first phase of an arm that has one reads of its parameter file; its student starts from the teacher."""

    student: StudentSettings
    layers: TrainingSettings


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Nobody else is within a block of the same lock; a killed process holds none."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def params_of(run: Run, place: Place) -> dict[str, Any]:
    """The parameter file of a run.

    Raises:
        PipelineError: it cannot be run: a set, a model or the arm is not what it needs.
    """
    return _params(run, place, _own(run, place.work / run.case.name) / "tables")


def _params(run: Run, place: Place, tables: Path) -> dict[str, Any]:
    return run.params(corpus_settings(place.data, run.case, tables), place.models, place.work / run.case.name)


def _own(run: Run, case: Path) -> Path:
    """Where the rows of a run lie: those of the case, but for an arm that has more."""
    return case / run.name if all_arms()[run.arm].unlabelled else case


def result_of(run: Run, place: Place) -> tuple[Result, Curve]:
    """Make the run's student by the real stages and measure it on the test split; also what its epochs came to.

    What the case shares (tables, teacher, soft labels) is made by whoever comes first and kept; shards are kept by the store.
    """
    case, arm = place.work / run.case.name, all_arms()[run.arm]
    folder = case / run.name
    folder.mkdir(parents=True, exist_ok=True)
    params = params_of(run, place)
    with alone(case / "lock"):
        _shared(run, place, case)
        _more_rows(run, place, case, params)
        soft_labels = _soft_labels(_own(run, case), case, folder, params)
    common = {"--soft-labels": soft_labels, "--teacher": case / TEACHER, "--params": _written(params, folder / "params.yaml")}
    seconds, shards = 0.0, None
    if arm.augment is not None:
        with alone(case / "lock"):
            shards, seconds = _variants(run, folder, common)
    own_store = params | {"runtime": params["runtime"] | {"store": str(folder / "store")}}
    common["--params"] = _written(own_store, folder / "params.yaml")
    cost, made = folder / COST, folder / "student"
    if arm.online:
        _online(arm.online, run.case.task, common, made, cost)
    else:
        if arm.layers_first is not None:
            _layers(folder, common, shards)
        places = {"--shards": shards or folder / "none", "--out": made, "--cost": cost}
        _run(distill.main, **common, **{"--student": STUDENT}, **places)
    _run(evaluate.main, **common, **{"--student": made, "--out": folder / "evaluation"})
    curve = [
        {str(name): value for name, value in epoch.items()} for epoch in pd.read_csv(made / HISTORY_FILE).to_dict("records")
    ]
    result = _result(run, folder, soft_labels, shards, seconds)
    shutil.rmtree(folder)
    return result, curve


def _shared(run: Run, place: Place, case: Path) -> None:
    """Tables, prepared corpus and teacher of the case.

    Raises:
        PipelineError: what the folder holds was made by other code, in another precision, or from other data, another model or
            another base.yaml.
    """
    made_of = {
        "base": run.settings()["base"],
        "data": data_hash(place.data, run.case.task),
        "model": _named(place.models.teacher),
        "code": _code(),
    }
    note = case / "case.json"
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) != made_of:
        raise PipelineError(
            f"{case} was made by other code, in another precision, or from other data, another model or another base.yaml; "
            "name another --work"
        )
    write_json(note, made_of)
    if (case / TEACHER).is_dir():
        return
    params = _params(run, place, case / "tables")
    task, prepared = {"--task": run.case.task}, _prepared(run, place, case, params)
    steps = -(-pq.read_metadata(prepared / "train.parquet").num_rows // params["training"]["batch_size"])
    epochs = max(params["teach"]["num_train_epochs"], -(-TEACHER_STEPS // steps))
    given = _written(params | {"teach": params["teach"] | {"num_train_epochs": epochs}}, case / "params.yaml")
    _run(teach.main, **task, **{"--prepared": prepared, "--params": given, "--out": case / TEACHER})


def _more_rows(run: Run, place: Place, case: Path, params: dict[str, Any]) -> None:
    """Tables and prepared corpus of an arm that has texts without labels besides the case's rows."""
    folder = _own(run, case)
    if folder != case and not (folder / "prepared").is_dir():
        shutil.rmtree(folder / "tables", ignore_errors=True)  # of a run that was killed between the two
        _prepared(run, place, folder, params, all_arms()[run.arm].unlabelled)


def _prepared(run: Run, place: Place, folder: Path, params: dict[str, Any], unlabelled: int = 0) -> Path:
    cut(place.data, run.case, folder / "tables", unlabelled)
    given = _written(params, folder / "params.yaml")
    _run(prepare.main, **{"--task": run.case.task, "--params": given, "--out": folder / "prepared"})
    return folder / "prepared"


def _soft_labels(rows: Path, case: Path, folder: Path, params: dict[str, Any]) -> Path:
    """The soft labels of the rows prepared in ``rows``, which all runs on them share."""
    found = rows / "soft_labels"
    if not found.is_dir():
        given = _written(params, folder / "params.yaml")
        places = {"--prepared": rows / "prepared", "--teacher": case / TEACHER, "--out": found}
        _run(soft_label.main, **places, **{"--params": given})
    return found


def _variants(run: Run, folder: Path, common: dict[str, Any]) -> tuple[Path, float]:
    """The shards of the arm, and the seconds that surrogate, masked_lm and augment took when they made them."""
    began, clock = time.time(), time.perf_counter()
    task, prepared, shards = {"--task": run.case.task}, _own(run, folder.parent) / "prepared", folder / "shards"
    models = {"--surrogate": folder / "surrogate", "--masked-lm": folder / "masked_lm"}
    _run(surrogate.main, **task, **common, **{"--out": models["--surrogate"]})
    places = {"--prepared": prepared, "--out": models["--masked-lm"]}
    _run(masked_lm.main, **task, **places, **{"--params": common["--params"]})
    _run(augment.main, **task, **common, **models, **{"--out": shards})
    for made_here in models.values():
        shutil.rmtree(made_here, ignore_errors=True)
    keys = [entry.receipt.key for entry in Manifest.read(shards).shards]
    store = Store(folder.parent / STORE)
    stored = [entry for key in keys if (entry := store.peek(key)) is not None]
    made = {entry.name for entry in stored if (entry.folder / SHARD_FILE).stat().st_mtime >= began}
    return shards, seconds_of({*map(key_hash, keys)}, made, time.perf_counter() - clock, folder.parent / "seconds.json")


def seconds_of(shards: set[str], made: set[str], seconds: float, notes: Path) -> float:
    """What it took to make these shards, whichever runs made them: the time of a run goes in equal parts to what it made.

    Shards of a run that was killed have no time of their own; they count as much as the others of the set.
    """
    known: dict[str, float] = json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else {}
    known |= dict.fromkeys(sorted(made), seconds / max(1, len(made)))
    write_json(notes, known)
    timed = [known[name] for name in shards if name in known]
    return len(shards) * statistics.fmean(timed) if timed else seconds


def _online(owner: GradientOwner, task: str, common: dict[str, Any], out: Path, cost: Path) -> None:
    params = config.read_params(common["--params"])
    places: dict[str, Any] = {"student": student_places(params, STUDENT), "augment": augment_places(params, task)}
    needs = config.load(common["--params"], OnlineNeeds, **places)
    search = needs.augment.perturbation
    train_online(owner, common["--teacher"], common["--soft-labels"], needs.student, search, out, cost)


def _layers(folder: Path, common: dict[str, Any], shards: Path | None) -> None:
    """The first phase of a student, unless it is finished with these copies and this teacher."""
    assert shards is not None, "copies are stored variants"
    key = hash_of([manifest_hash(shards), ModelFolder(common["--teacher"]).hash])[:12]
    if (folder / LAYERS_COST).is_file() and json.loads((folder / LAYERS_COST).read_text(encoding="utf-8"))["key"] == key:
        return
    student = student_places(config.read_params(common["--params"]), STUDENT)
    needs = config.load(common["--params"], LayersNeeds, student=student, layers=("training", LAYERS))
    sources = Sources.open(ModelFolder(common["--teacher"]), common["--soft-labels"], shards)
    begun = needs.student.model_copy(update={"initial_weights": "teacher"})
    cost = train_layers(sources, begun, needs.layers, folder / f"checkpoints-{key}", folder / LAYERS)
    write_json(folder / LAYERS_COST, cost | {"key": key})


def _cost(folder: Path) -> dict[str, Any]:
    """Seconds and steps of a student, in whatever phases it learnt."""
    phases = [folder / COST, folder / LAYERS_COST]
    known = [json.loads(phase.read_text(encoding="utf-8")) for phase in phases if phase.is_file()]
    return {name: sum(cost[name] for cost in known) for name in ("seconds", "steps")}


def _result(run: Run, folder: Path, soft_labels: Path, shards: Path | None, seconds: float) -> Result:
    found = Qualities.model_validate_json((folder / "evaluation" / QUALITY_FILE).read_bytes())
    cost = _cost(folder)
    lineage = json.loads((folder / "student" / "lineage.json").read_text(encoding="utf-8"))
    kept = [soft_labels] if shards is None else [soft_labels, shards]
    return Result(
        task=run.case.task,
        rows=run.case.rows,
        train_rows=sum(entry.receipt.rows for entry in Manifest.read(soft_labels).of_split("train")),
        seed=run.case.seed,
        student=run.student,
        arm=run.arm,
        epochs=run.epochs,
        metric=run.case.corpus.metric,
        value=round(found.student.value, 5),
        teacher=lineage["teacher"][:12],
        teacher_value=round(found.teacher.value, 5),
        dev=round(lineage["dev"], 5),
        agreement=round(found.student.agreement, 5),
        test_rows=found.rows,
        best_epoch=float(run.all_epochs),
        steps=cost["steps"],
        seconds=round(cost["seconds"], 1),
        stage_one_seconds=round(seconds, 1),
        bytes=sum(entry.receipt.bytes for place in kept for entry in Manifest.read(place).shards),
        manifest=manifest_hash(kept[-1])[:12],
        settings=canonical_json(run.settings()).decode(),
        code=_code()[:12],
    )


def _code() -> str:
    return hash_of({"sources": BUILD.sources, "libraries": BUILD.libraries})


def _named(model: str) -> str:
    """A folder by its bytes, a hub id by itself."""
    return ModelFolder(model).hash if Path(model).is_dir() else model


def _written(params: dict[str, Any], path: Path) -> Path:
    write_json(path, params)  # which is YAML too
    return path


def _run(command: click.Command, **options: Any) -> None:
    """A stage, as its command line runs it."""
    command.main([str(part) for pair in options.items() for part in pair], standalone_mode=False)
