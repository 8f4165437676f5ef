from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from pipeline.store.hashing import differences
from pipeline.training import callbacks
from pipeline.training.checkpoints import mark_whole
from pipeline.training.resuming import training_key
from stages import scout, teach, words
from tests.world import FIT, MAX_LENGTH, OPTIMISER, RUNTIME, STUDENT, make_task, make_tokenizer, save_masked_lm, save_teacher

STAGES: dict[str, click.Command] = {"teach": teach.main, "words": words.main, "scout": scout.main}
LONG: dict[str, Any] = {"num_train_epochs": 4, "batch_size": 16}


class Killed(BaseException):
    """The process ends, as far as the code can tell."""


@pytest.fixture
def run(tmp_path: Path, prepared: Path, teacher: Path, scores: Path) -> Callable[..., Path]:
    """Run one of the stages with a checkpoint after every third step; gives its output."""

    def of(stage: str, out: Path, model: Path = teacher, fit: bool = True, **optimiser: Any) -> Path:
        params = {
            "tasks": {
                "tiny": {
                    "teacher": {"model": str(model), "fine_tune": fit, "max_length": MAX_LENGTH},
                    "words": {"model": str(model), "fit": fit},
                    "aim": "scout",
                }
            },
            "teach": OPTIMISER | LONG | optimiser,
            "words": FIT | LONG | optimiser,
            "distill": STUDENT | {"optimiser": OPTIMISER | LONG | optimiser},
            "scout": {"layers": 1, "snapshots": 5},
            "runtime": RUNTIME | {"save_steps": 3, "store": str(tmp_path / "store")},
        }
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        options = {"--task": "tiny", "--params": tmp_path / "params.yaml", "--out": out}
        reads = {"--scores": scores, "--teacher": teacher} if stage == "scout" else {"--prepared": prepared}
        STAGES[stage].main([str(word) for pair in (options | reads).items() for word in pair], standalone_mode=False)
        return out

    return of


def killed_after(saves: int, monkeypatch: pytest.MonkeyPatch, run: Callable[[], Path]) -> None:
    """Begin a run and end it after so many checkpoints."""
    left = iter(range(saves - 1, -1, -1))

    def keep(*checkpoint: Any) -> None:
        mark_whole(*checkpoint)
        if not next(left):
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(callbacks, "mark_whole", keep)
        with pytest.raises(Killed):
            run()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_killed_stage_resumes_and_makes_the_same_bytes_and_a_finished_one_is_fetched(
    stage: str, run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out, again = run(stage, tmp_path / "whole"), tmp_path / "out" / "tiny", tmp_path / "again"
    (tmp_path / "store").rename(tmp_path / "other store")
    for saves in (2, 1):
        killed_after(saves, monkeypatch, lambda: run(stage, out))
        assert not out.exists(), "nothing half-written"
    capsys.readouterr()
    run(stage, out)
    assert f"{stage} tiny: resumes after step 6 of 16" in capsys.readouterr().out
    run(stage, again)
    assert f"{stage} tiny: finished before, taken from " in capsys.readouterr().out
    assert files(out) == files(again) == files(whole)
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]
    assert not list((tmp_path / "store").glob(".unfinished-*")), "no checkpoints are left of what is finished"


def test_a_training_with_other_settings_begins_anew(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed_after(2, monkeypatch, lambda: run("teach", tmp_path / "tiny"))
    run("teach", tmp_path / "tiny", learning_rate=2e-3)
    assert "resumes" not in capsys.readouterr().out


def test_an_adopted_model_is_not_stored(run: Callable[..., Path], tmp_path: Path) -> None:
    run("teach", tmp_path / "tiny", fit=False)
    run("words", tmp_path / "words", save_masked_lm(tmp_path / "masked"), fit=False)
    assert not (tmp_path / "store").exists()


def test_the_key_names_files_model_and_tokenizer_but_not_their_place(prepared: Path, tmp_path: Path) -> None:
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
