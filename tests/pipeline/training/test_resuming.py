from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from pipeline.config.params import Settings
from pipeline.config.runtime import RuntimeSettings
from pipeline.training import callbacks as conduct_code
from pipeline.training import resuming
from pipeline.training.checkpoints import mark_whole
from pipeline.training.resuming import KEY_FILE, deciding, resumable
from stages import scout, teach, words
from tests.world import FIT, MAX_LENGTH, OPTIMISER, RUNTIME, STUDENT, make_task, make_tokenizer, runtime_at, save_teacher

STAGES: dict[str, click.Command] = {"teach": teach.main, "words": words.main, "scout": scout.main}
LONG: dict[str, Any] = {"num_train_epochs": 4, "batch_size": 16}


class Killed(BaseException):
    """The process ends, as far as the code can tell."""


@pytest.fixture
def run(tmp_path: Path, prepared: Path, teacher: Path, scores: Path) -> Callable[..., Path]:
    """Run one of the stages with states after every third step, and give what it made."""

    def of(stage: str, out: Path, **optimiser: Any) -> Path:
        model = str(teacher)
        params = {
            "tasks": {
                "tiny": {
                    "teacher": {"model": model, "fine_tune": True, "max_length": MAX_LENGTH},
                    "words": {"model": model, "fit": True},
                    "aim": "scout",
                }
            },
            "teach": OPTIMISER | LONG | optimiser,
            "words": FIT | LONG | optimiser,
            "distill": STUDENT | {"optimiser": OPTIMISER | LONG | optimiser},
            "scout": {"layers": 1, "snapshots": 5},
            "runtime": RUNTIME | {"save_steps": 3},
        }
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        options = {"--task": "tiny", "--params": tmp_path / "params.yaml", "--out": out}
        reads = {"--scores": scores, "--teacher": teacher} if stage == "scout" else {"--prepared": prepared}
        STAGES[stage].main([str(word) for pair in (options | reads).items() for word in pair], standalone_mode=False)
        return out

    return of


def killed_after(saves: int, monkeypatch: pytest.MonkeyPatch, run: Callable[[], Path]) -> None:
    """Begin a run and end it when it has kept so many states."""
    kept: list[int] = []

    def keep(folder: Path, step: int, *rest: Any) -> None:
        mark_whole(folder, step, *rest)
        kept.append(step)
        if len(kept) == saves:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(conduct_code, "mark_whole", keep)
        with pytest.raises(Killed):
            run()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_killed_stage_goes_on_and_makes_the_same_bytes(
    stage: str, run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = run(stage, tmp_path / "whole"), tmp_path / "out" / "tiny"
    for saves in (2, 1):
        killed_after(saves, monkeypatch, lambda: run(stage, out))
        assert not out.exists(), "nothing half-written"
    capsys.readouterr()
    run(stage, out)
    assert f"{stage} tiny: resumes after step 6 of 16" in capsys.readouterr().out
    assert files(out) == files(whole)
    assert [path.name for path in out.parent.iterdir()] == ["tiny"], "no states are left of what is finished"


def test_a_training_that_is_decided_by_something_else_begins_anew(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed_after(2, monkeypatch, lambda: run("teach", tmp_path / "tiny"))
    capsys.readouterr()
    run("teach", tmp_path / "tiny", learning_rate=2e-3)
    assert "resumes" not in capsys.readouterr().out


def test_states_are_kept_for_the_same_training_by_the_same_code_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, runtime = tmp_path / "made", runtime_at(tmp_path)

    def states_found(decided_by: dict[str, Any]) -> list[str]:
        found: list[str] = []
        with suppress(Killed), resumable(out, decided_by, runtime) as conduct:
            assert conduct.checkpoints is not None
            found += [path.name for path in conduct.checkpoints.iterdir() if path.name != KEY_FILE]
            (conduct.checkpoints / "checkpoint-1").mkdir(exist_ok=True)
            raise Killed
        return found

    assert states_found({"rate": 1}) == []
    assert states_found({"rate": 1}) == ["checkpoint-1"]
    assert states_found({"rate": 2}) == []
    monkeypatch.setattr(resuming, "BUILD", resuming.BUILD.__class__(resuming.BUILD.sources, {"torch": "0"}))
    assert states_found({"rate": 2}) == []
    (tmp_path / ".made-training" / KEY_FILE).write_text("{")
    assert states_found({"rate": 2}) == []


def test_a_run_that_fails_before_its_first_state_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Killed), resumable(tmp_path / "made", {}, runtime_at(tmp_path)):
        raise Killed
    assert list(tmp_path.iterdir()) == []


def test_files_the_model_and_its_tokenizer_decide_and_their_place_does_not(prepared: Path, tmp_path: Path) -> None:
    one, same, other = (save_teacher(tmp_path / str(n), make_task(), seed) for n, seed in enumerate((1, 1, 2)))
    retold = save_teacher(tmp_path / "retold", make_task(), 1)
    make_tokenizer(types=False).save_pretrained(retold)
    files, nothing = [prepared / "train.parquet"], Settings()
    found = [deciding(files, str(model), nothing) for model in (one, same, other, retold)]
    assert found[0] == found[1]
    assert found[0] != found[2]
    assert {name for name in found[0] if found[0][name] != found[3][name]} == {"tokenizer"}
    assert deciding([prepared / "dev.parquet"], str(one), nothing)["files"] != found[0]["files"]


def test_of_settings_all_but_the_runtime_decides(prepared: Path, tmp_path: Path) -> None:
    class Needs(Settings):
        rate: float
        runtime: RuntimeSettings

    teacher, runtime = str(save_teacher(tmp_path / "teacher", make_task())), runtime_at(tmp_path)
    one, hurried, other = (
        deciding([], teacher, Needs(rate=rate, runtime=runtime.model_copy(update={"dataloader_num_workers": readers})))
        for rate, readers in ((0.1, 0), (0.1, 2), (0.2, 0))
    )
    assert one == hurried
    assert one != other
