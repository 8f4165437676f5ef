import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from safetensors import SafetensorError

from pipeline.config.errors import Faults
from pipeline.store.files import write_json
from stages import augment, distill, evaluate, export, prepare, score, scout, teach, words
from stages.command import stage
from tests.fake_run import params
from tests.world import OPTIMISER, RUNTIME


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command changes around itself is changed back after each test."""
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM", "TRANSFORMERS_VERBOSITY"):
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


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left", "x"), OSError(), SafetensorError("I/O error"), Faults("params.yaml", ["a", "b"])],
)
def test_a_fault_of_the_input_or_the_machine_is_a_sentence_without_traceback(error: Exception) -> None:
    result = invoke(failing(error))
    assert (result.exit_code, result.stdout) == (1, "")
    assert isinstance(result.exception, SystemExit)
    assert result.stderr == f"Error: {str(error) or 'OSError'}\n"
    said = invoke(failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))).stderr
    assert said == "Error: CUDA out of memory. Tried to allocate 2 GiB; smaller batches need less memory\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("x")])
def test_an_error_that_nobody_foresaw_keeps_its_traceback(error: Exception) -> None:
    result = invoke(failing(error))
    assert result.exit_code == 1
    assert result.exception is error


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
    named = {"model": "mine", "fine_tune": True, "max_length": 16}
    settings = {"tasks": {"tiny": {"teacher": named}}, "teach": OPTIMISER, "runtime": RUNTIME}
    Path("params.yaml").write_text(yaml.safe_dump(settings))
    found = CliRunner().invoke(teach.main, ["--task", "tiny", "--prepared", str(prepared), "--out", "mine"])
    assert found.stderr == "Error: --out mine would replace the model that it begins with, mine; name another folder\n"


@pytest.mark.parametrize("stage", [teach, words])
def test_the_corpus_of_another_task_is_refused(
    stage: ModuleType, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(params("other")))
    found = CliRunner().invoke(stage.main, ["--task", "other", "--prepared", str(prepared), "--out", "out"])
    assert found.stderr == f"Error: {prepared} holds the corpus of tiny, not of other\n"
