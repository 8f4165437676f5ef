from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from pipeline.store.keys import differences
from pipeline.training import callbacks as conduct_code
from pipeline.training.checkpoints import mark_whole
from pipeline.training.resuming import training_key
from stages import scout, teach, words
from tests.world import FIT, MAX_LENGTH, OPTIMISER, RUNTIME, STUDENT, make_task, make_tokenizer, save_masked_lm, save_teacher

STAGES: dict[str, click.Command] = {"teach": teach.main, "words": words.main, "scout": scout.main}
LONG: dict[str, Any] = {"epochs": 4, "batch_size": 16}


class Killed(BaseException):
    """The process ends, as far as the code can tell."""


@pytest.fixture
def run(tmp_path: Path, prepared: Path, teacher: Path, scores: Path) -> Callable[..., Path]:
    """Run one of the stages with states after every third step, and give what it made."""

    def of(stage: str, out: Path, store: Path | None = None, task: dict[str, Any] | None = None, **optimiser: Any) -> Path:
        model = str(teacher)
        params = {
            "tasks": {
                "tiny": {
                    "teacher": {"model": model, "fine_tune": True, "max_length": MAX_LENGTH},
                    "words": {"model": model, "fit": True},
                    "aim": "scout",
                }
                | (task or {})
            },
            "teach": OPTIMISER | LONG | optimiser,
            "words": FIT | LONG | optimiser,
            "distill": STUDENT | {"optimiser": OPTIMISER | LONG | optimiser},
            "scout": {"layers": 1, "snapshots": 5},
            "runtime": RUNTIME | {"checkpoint_steps": 3, "store": str(store or tmp_path / "store")},
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
    whole, out = run(stage, tmp_path / "whole", tmp_path / "another store"), tmp_path / "out" / "tiny"
    for saves in (2, 1):
        killed_after(saves, monkeypatch, lambda: run(stage, out))
        assert not out.exists(), "nothing half-written"
    capsys.readouterr()
    run(stage, out)
    assert f"{stage} tiny: resumes after step 6 of 16" in capsys.readouterr().out
    assert files(out) == files(whole)
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]
    assert not list((tmp_path / "store").glob(".unfinished-*")), "no checkpoints are left of what is finished"


def test_a_training_that_is_decided_by_something_else_begins_anew(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed_after(2, monkeypatch, lambda: run("teach", tmp_path / "tiny"))
    capsys.readouterr()
    run("teach", tmp_path / "tiny", learning_rate=2e-3)
    assert "goes on" not in capsys.readouterr().out


def test_what_was_finished_before_is_fetched_with_the_same_bytes(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = {stage: files(run(stage, tmp_path / stage)) for stage in STAGES}
    monkeypatch.setattr("pipeline.training.trainer.fine_tune", lambda *_, **__: pytest.fail("it was trained before"))
    capsys.readouterr()
    for stage in STAGES:
        assert files(run(stage, tmp_path / f"{stage} again")) == first[stage]
        assert f"{stage} tiny: finished before, taken from " in capsys.readouterr().out


def test_an_adopted_model_is_not_stored(run: Callable[..., Path], tmp_path: Path, teacher: Path) -> None:
    run("teach", tmp_path / "tiny", task={"teacher": {"model": str(teacher), "fine_tune": False, "max_length": MAX_LENGTH}})
    run("words", tmp_path / "words", task={"words": {"model": str(save_masked_lm(tmp_path / "masked")), "fit": False}})
    assert not (tmp_path / "store").exists()


def test_files_the_model_and_its_tokenizer_decide_and_their_place_does_not(prepared: Path, tmp_path: Path) -> None:
    one, same, other = (save_teacher(tmp_path / str(n), make_task(), seed) for n, seed in enumerate((1, 1, 2)))
    retold = save_teacher(tmp_path / "retold", make_task(), 1)
    make_tokenizer(types=False).save_pretrained(retold)

    def key(model: Path, file: str = "train.parquet", **settings: Any) -> dict[str, Any]:
        return training_key("teacher", "pipeline.training.teacher", [prepared / file], str(model), settings)

    assert key(one) == key(same)
    assert differences(key(one), key(other))[0].startswith("model: ")
    assert [line.split(":")[0] for line in differences(key(one), key(retold))] == ["tokenizer"]
    assert [line.split(":")[0] for line in differences(key(one), key(one, "dev.parquet"))] == ["files"]
    assert [line.split(":")[0] for line in differences(key(one), key(one, rate=0.2))] == ["settings"]
