import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from safetensors import SafetensorError

from pipeline.config import runtime
from pipeline.config.errors import Faults, PipelineError
from pipeline.store.files import write_json
from stages import augment, distill, evaluate, export, prepare, report, score, scout, teach, words
from stages.command import folder_option, params_option, stage
from tests.fake_run import params
from tests.parameters import changed
from tests.world import RUNTIME

VARIABLES = ("HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM", "TRANSFORMERS_VERBOSITY")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command changes around itself is changed back after each test."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    monkeypatch.setattr(warnings, "filters", list(warnings.filters))
    monkeypatch.setattr(logging.getLogger("torch"), "level", logging.NOTSET)


def invoke(work: Callable[[], None], *arguments: str) -> Result:
    @stage
    def command() -> None:
        """Do the work."""
        work()

    return CliRunner().invoke(command, arguments)


def failing(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def test_a_command_that_ends_well_exits_with_zero_and_says_what_it_said() -> None:
    result = invoke(lambda: click.echo("12 rows"))
    assert (result.exit_code, result.output) == (0, "12 rows\n")


def test_what_a_person_must_mend_is_a_sentence_and_a_failure_without_traceback() -> None:
    result = invoke(failing(PipelineError("x.csv has no column 'text'; name it with corpus.text")))
    assert result.exit_code == 1
    assert result.stderr == "Error: x.csv has no column 'text'; name it with corpus.text\n"
    assert result.stdout == ""


def test_every_fault_is_printed() -> None:
    result = invoke(failing(Faults("params.yaml", ["a is missing", "b is missing"])))
    assert result.exit_code == 1
    assert result.stderr == "Error: params.yaml: 2 faults, nothing was written\n  - a is missing\n  - b is missing\n"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "data/x"), PermissionError("no rights"), OSError()])
def test_what_the_machine_refuses_is_a_sentence_too(error: OSError) -> None:
    result = invoke(failing(error))
    assert (result.exit_code, result.stdout) == (1, "")
    assert isinstance(result.exception, SystemExit)
    assert result.stderr == f"Error: {str(error) or 'OSError'}\n"


def test_a_library_s_own_error_of_a_full_disk_or_device_is_a_sentence() -> None:
    assert invoke(failing(SafetensorError("I/O error"))).stderr == "Error: I/O error\n"
    said = invoke(failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))).stderr
    assert said == "Error: CUDA out of memory. Tried to allocate 2 GiB; smaller batches need less memory\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("x")])
def test_an_error_that_nobody_foresaw_keeps_its_traceback(error: Exception) -> None:
    result = invoke(failing(error))
    assert result.exit_code == 1
    assert result.exception is error


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_the_docstring_and_runs_nothing(flag: str) -> None:
    result = invoke(failing(AssertionError("help must not run the stage")), flag)
    assert result.exit_code == 0
    assert "Do the work." in result.output


def test_a_spare_argument_is_refused_before_anything_runs() -> None:
    assert invoke(failing(AssertionError("must not run")), "--spare").exit_code == 2


@pytest.fixture
def given() -> dict[str, Path]:
    return {}


@pytest.fixture
def command(given: dict[str, Path]) -> click.Command:
    @stage
    @params_option
    @folder_option("--out", "Where the products go.")
    def run(params: Path, out: Path) -> None:
        """Run."""
        given.update(params=params, out=out)

    return run


def test_paths_arrive_as_paths_and_the_parameter_file_has_a_default(command: click.Command, given: dict[str, Path]) -> None:
    assert CliRunner().invoke(command, ["--out", "data/out"]).exit_code == 0
    assert given == {"params": Path("params.yaml"), "out": Path("data/out")}
    assert CliRunner().invoke(command, ["--out", "x", "--params", "other.yaml"]).exit_code == 0
    assert given == {"params": Path("other.yaml"), "out": Path("x")}


def test_a_folder_that_is_not_named_is_asked_for(command: click.Command, given: dict[str, Path]) -> None:
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 2
    assert "Missing option '--out'" in result.stderr
    assert given == {}


def test_a_file_is_no_folder_and_a_folder_no_parameter_file(
    command: click.Command, given: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for arguments in (["--out", str(tmp_path / "file")], ["--out", "x", "--params", str(tmp_path)]):
        assert CliRunner().invoke(command, arguments).exit_code == 2
    assert given == {}


def test_options_and_the_default_are_explained(command: click.Command) -> None:
    shown = CliRunner().invoke(command, ["-h"]).output
    assert "Where the products go." in shown
    assert "[default: params.yaml]" in shown


REPLACING = [augment, distill, evaluate, export, prepare, score, scout, teach, words]


@pytest.mark.parametrize("module", REPLACING, ids=lambda module: module.__name__)
def test_what_a_stage_has_not_written_it_does_not_replace(module: ModuleType, tmp_path: Path) -> None:
    """Before it looks at anything else: a folder named by mistake is lost."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    others = ["prepared", "teacher", "scores", "shards", "student", "aim"]
    flags = {parameter.opts[0] for parameter in module.main.params}
    given = [text for name in others if f"--{name}" in flags for text in (f"--{name}", str(tmp_path / name))]
    named = ["--task", "tiny"] if "--task" in flags else []
    found = CliRunner().invoke(module.main, [*given, *named, "--out", str(tmp_path / "mine")])
    assert found.exit_code == 1
    assert "would be replaced as a whole, but it is not empty" in found.stderr
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


HALVED: list[tuple[ModuleType, str, Any, list[str], str]] = [
    (teach, "teach", 0.5, ["task", "prepared"], "teach.precision"),
    (words, "prepare_words", SimpleNamespace(told=lambda: "fitted"), ["task", "prepared"], "words.precision"),
    (score, "score", None, ["prepared", "teacher"], "score.precision"),
    (scout, "train_scout", SimpleNamespace(snapshots=2, dev=0.5), ["task", "scores", "teacher"],
     "scout.optimiser.precision"),
    (augment, "augment", None, ["task", "scores", "teacher", "aim"], "augment.precision"),
    (distill, "obtain", {"dev": 0.5, "teacher_dev": 0.5}, ["student", "scores", "shards", "teacher", "cost"],
     "distill.optimiser.precision"),
    (distill, "train_all", None, ["all"], "distill.optimiser.precision, students.tiny.optimiser.precision"),
]  # fmt: skip
"""Stages, what of each does the work, what that gives back, the options, and the settings that ask for bfloat16."""


@pytest.mark.parametrize(("stage", "work", "given", "options", "asking"), HALVED)
def test_a_stage_that_would_run_slowly_in_bfloat16_says_so_once_at_its_start(
    stage: ModuleType,
    work: str,
    given: Any,
    options: list[str],
    asking: str,
    prepared: Path,
    scores: Path,
    teacher: Path,
    write: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = {"optimiser": {"precision": "bfloat16"}}
    places = dict.fromkeys(("teach", "words", "score", "augment"), "bfloat16")
    changes = {f"{place}.precision": kind for place, kind in places.items()} | {"distill.optimiser.precision": "bfloat16"}
    changes |= {
        "students.tiny": half | {"layers": 2},
        "scout": half | {"layers": 2, "snapshots": 2},
        "tasks.movies.aim": "scout",
    }
    models = {"teacher": {"model": str(teacher), "fine_tune": True, "max_length": 16}}
    content = yaml.safe_load(changed(changes))
    content["tasks"] = {"tiny": content["tasks"]["movies"] | models | {"words": {"model": str(teacher), "fit": True}}}
    params = write("params.yaml", yaml.safe_dump(content))
    monkeypatch.setattr(runtime, "bfloat16_slowdown", lambda: 18.0)
    monkeypatch.setattr(stage, work, lambda *arguments, **named: given)
    values = {"task": "tiny", "student": "half", "prepared": prepared, "scores": scores, "teacher": teacher, "aim": teacher}
    chosen = [word for name in options for word in (f"--{name}", str(values.get(name, params.parent / name)))]
    out = [] if "all" in options else ["--out", str(params.parent / "out")]
    found = CliRunner().invoke(stage.main, [*chosen, *out, "--params", str(params)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    note = f"note: {asking}: on this processor a product in bfloat16 takes 18.0 times as long as in float32"
    assert found.output.splitlines()[:1] == [note]
    assert found.output.count("note: ") == 1


@pytest.mark.parametrize("main", [score.main, augment.main])
def test_a_plan_may_name_any_folder_since_it_writes_nothing(main: click.Command, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    places = ["--prepared", "--teacher"] if main is score.main else ["--task=tiny", "--scores", "--teacher", "--aim"]
    given = [text for flag in places for text in ((flag,) if "=" in flag else (flag, str(tmp_path / "nobody")))]
    found = CliRunner().invoke(main, [*given, "--out", str(tmp_path), "--plan"])
    assert "would" not in found.stderr


def test_a_report_lies_beside_what_it_reads(tmp_path: Path) -> None:
    """It writes its own files and replaces no folder."""
    given = ["--data", str(tmp_path), "--out", str(tmp_path), "--print-only"]
    assert "would replace" not in CliRunner().invoke(report.main, given).stderr


@pytest.mark.parametrize("read", ["student", "student/below"])
def test_what_is_read_is_not_written_over(read: str, tmp_path: Path) -> None:
    """A student that is adopted as a teacher has every mark of a student."""
    (tmp_path / "student" / "below").mkdir(parents=True)
    write_json(tmp_path / "student" / "lineage.json", {})
    places = {"scores": "scores", "shards": "shards", "teacher": read, "out": "student", "cost": "cost.json"}
    given = [text for name, place in places.items() for text in (f"--{name}", str(tmp_path / place))]
    found = CliRunner().invoke(distill.main, ["--student", "half", *given])
    assert found.exit_code == 1
    assert f"--out {tmp_path / 'student'} would replace what --teacher names, {tmp_path / read}" in found.stderr
    assert (tmp_path / "student" / "lineage.json").exists()


def test_a_model_that_settings_name_is_not_written_over(
    prepared: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only copy of a classifier may lie where its teacher is to be written."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teacher, "mine")
    fit = {
        "num_train_epochs": 1,
        "batch_size": 8,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.0,
    }
    section = fit | {"weight_decay": 0.0, "max_grad_norm": 1.0, "precision": "float32", "seed": 1}
    named = {"model": "mine", "fine_tune": True, "max_length": 16}
    settings = {"tasks": {"tiny": {"teacher": named}}, "teach": section, "runtime": RUNTIME}
    Path("params.yaml").write_text(yaml.safe_dump(settings))
    found = CliRunner().invoke(teach.main, ["--task", "tiny", "--prepared", str(prepared), "--out", "mine"])
    assert found.stderr == "Error: --out mine would replace the model that it begins with, mine; name another folder\n"


def test_what_a_training_took_may_lie_beside_its_student(tmp_path: Path) -> None:
    given = [text for name in ("scores", "shards", "teacher") for text in (f"--{name}", str(tmp_path / name))]
    places = ["--out", str(tmp_path / "out"), "--cost", str(tmp_path / "out" / "cost.json")]
    assert "would replace" not in CliRunner().invoke(distill.main, ["--student", "half", *given, *places]).stderr


def test_a_student_that_is_asked_for_by_half_is_told_what_else_it_takes() -> None:
    half = CliRunner().invoke(distill.main, ["--student", "half", "--scores", "scores", "--out", "out"])
    assert "give --shards, --teacher, --cost too, or --all with the data folder and nothing else" in half.stderr
    every = CliRunner().invoke(distill.main, ["--all", "data", "--student", "half"])
    assert "--all trains every student into the store; leave out --student" in every.stderr


@pytest.mark.parametrize("stage", [teach, words])
def test_the_corpus_of_another_task_is_refused(
    stage: ModuleType, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(params("other")))
    found = CliRunner().invoke(stage.main, ["--task", "other", "--prepared", str(prepared), "--out", "out"])
    assert found.stderr == f"Error: {prepared} holds the corpus of tiny, not of other\n"


def test_a_scout_of_another_task_is_refused(scores: Path, teacher: Path, tmp_path: Path) -> None:
    given = ["--task", "other", "--scores", str(scores), "--teacher", str(teacher), "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(scout.main, given)
    assert found.stderr == f"Error: {scores} holds the scores of tiny, not of other\n"


@pytest.mark.parametrize("main", [score.main, augment.main])
def test_the_two_passes_of_the_teacher_can_be_planned(main: click.Command) -> None:
    assert re.search(r"--plan +Say what would be computed", CliRunner().invoke(main, ["-h"]).output)


def test_libraries_are_quiet_while_a_stage_runs() -> None:
    seen: list[str | None] = []

    def work() -> None:
        seen.extend(os.environ.get(name) for name in VARIABLES)
        warnings.warn_explicit("noise", UserWarning, "x.py", 1, module="torch")
        logging.getLogger("torch").warning("noise")

    with warnings.catch_warnings(record=True) as caught:
        result = invoke(work)
    assert result.exit_code == 0
    assert seen == ["1", "false", "error"]
    assert caught == []
    assert "noise" not in result.output


def test_what_a_person_asked_of_a_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "debug")
    seen: list[str] = []
    invoke(lambda: seen.append(os.environ["TRANSFORMERS_VERBOSITY"]))
    assert seen == ["debug"]


def test_warnings_of_other_code_are_still_shown() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        invoke(lambda: warnings.warn_explicit("look here", UserWarning, "x.py", 1, module="pipeline.corpus"))
    assert [str(one.message) for one in caught] == ["look here"]


def test_students_of_a_parameter_file_that_has_none_cannot_be_trained(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("tasks: {movies: {}}\n", encoding="utf-8")
    result = CliRunner().invoke(distill.main, ["--all", str(tmp_path), "--params", str(tmp_path / "params.yaml")])
    assert result.exit_code == 1
    assert "students must map at least one name to its settings" in result.output
