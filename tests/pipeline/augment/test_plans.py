import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from torch import Tensor

from pipeline.augment.candidates import MaskedLM
from pipeline.augment.passes import augment, score
from pipeline.augment.plans import Augmentation, scoring
from pipeline.augment.recipes import AugmentSettings
from pipeline.augment.teacher import FrozenModel
from pipeline.config.errors import PipelineError
from pipeline.distill.dataset import aims_in
from pipeline.shards.manifest import Manifest, ShardMismatch, lineage
from pipeline.shards.reader import Shards
from pipeline.store.store import Store
from tests.world import SCORE_SETTINGS, augment_settings, make_task, runtime_at, save_masked_lm, save_scout, save_teacher

EDITS = {"mask": 0.2, "delete": 0.2, "swap": 0.2, "span": 0.5}
PROPOSING = {"replace": 0.4, "candidates": 5, "batch_rows": 16}


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every pass of a teacher or scout, since the list was last cleared."""
    counted: list[int] = []
    logits_at = FrozenModel.logits_at

    def counting(model: FrozenModel, batch: dict[str, Tensor], embeddings: Tensor) -> Tensor:
        counted.append(len(embeddings))
        return logits_at(model, batch, embeddings)

    monkeypatch.setattr(FrozenModel, "logits_at", counting)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    return counted


def scout_of(folder: Path, teacher: Path, changed: dict[str, Any], snapshots: int = 2) -> Path:
    return save_scout(folder, range(11, 11 + snapshots), key=lineage(teacher) | changed).folder


def recomputed(manifest: Manifest, before: Manifest) -> set[int]:
    """Variants of which no shard was there before; all shards of a variant or none."""
    known = {entry.receipt.sha256 for entry in before.shards}
    new = {entry.variant for entry in manifest.shards if entry.receipt.sha256 not in known}
    assert not {entry.variant for entry in manifest.shards if entry.receipt.sha256 in known} & new
    return new


def test_another_teacher_is_refused_by_the_fields_that_differ(scores: Path, prepared: Path, tmp_path: Path) -> None:
    other = save_teacher(tmp_path / "other", make_task(), seed=1)
    with pytest.raises(ShardMismatch, match=rf"^the scores in {scores} do not fit: teacher: [^;]*Score again with this"):
        Augmentation.of(scores, other, None, augment_settings())
    other = save_teacher(tmp_path / "other", make_task(labels=("good", "bad")))
    with pytest.raises(ShardMismatch, match=r'labels: \["good", "bad"\] wanted, \["bad", "good"\] found'):
        Augmentation.of(scores, other, None, augment_settings())
    other = save_teacher(tmp_path / "other", make_task("regression"))
    with pytest.raises(PipelineError, match=r"other was taught another task than that in .*: kind 'regression' in place of"):
        scoring(prepared, other, SCORE_SETTINGS)


def test_variants_are_not_taken_for_scores(made: tuple[Path, Path], teacher: Path) -> None:
    with pytest.raises(ShardMismatch, match=r"holds not the scores of untouched inputs, which the stage score writes; name"):
        Augmentation.of(made[1], teacher, None, augment_settings())


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"teacher": "0" * 64}, r"teacher: [0-9a-f]{12}… wanted, 0{12}… found"),
        ({"tokenizer": None}, r"tokenizer: [0-9a-f]{12}… wanted, null found"),
    ],
)
def test_a_scout_of_something_else_is_refused_by_the_name_of_the_field(
    scores: Path, teacher: Path, tmp_path: Path, changed: dict[str, Any], sentence: str
) -> None:
    scout = scout_of(tmp_path / "scout", teacher, changed, 1)
    with pytest.raises(ShardMismatch, match=rf"snapshots of the scout in {scout} do not fit: {sentence}\. Make it again"):
        Augmentation.of(scores, teacher, scout, augment_settings())


def test_a_changed_snapshot_computes_what_is_aimed_at_it(
    scores: Path, teacher: Path, tmp_path: Path, passes: list[int]
) -> None:
    scout = scout_of(tmp_path / "scout", teacher, {})
    settings = augment_settings(variants=3, recipes=[["perturb"], ["perturb"], ["mask"]])

    def run(name: str) -> Manifest:
        passes.clear()
        return augment(scores, teacher, scout, settings, runtime_at(tmp_path), tmp_path / name)

    first = run("first")
    assert run("again") == first
    assert passes == []
    assert first.details["snapshots"] == 2
    weights = safetensors.torch.load_file(scout / "snapshot-2" / "model.safetensors")
    safetensors.torch.save_file({name: -value for name, value in weights.items()}, scout / "snapshot-2" / "model.safetensors",
                                metadata={"format": "pt"})  # fmt: skip
    assert recomputed(run("second"), first) == {2}
    assert aims_in(first) == [1, 2, None]
    calibration = 2 * settings.calibration_rows
    assert sum(passes) == 2 * 60 + calibration


def run_in(folder: Path, scores: Path, teacher: Path, settings: AugmentSettings, words: Path | None = None) -> Manifest:
    return augment(scores, teacher, None, settings, runtime_at(folder), folder / "shards", words)


def test_a_changed_setting_computes_the_variants_that_use_it_and_no_others(
    scores: Path, teacher: Path, tmp_path: Path, passes: list[int]
) -> None:
    usual: dict[str, Any] = {"variants": 4, "recipes": [["perturb"], ["mask"], ["swap", "perturb"], ["mix"]]}
    first = run_in(tmp_path, scores, teacher, augment_settings(**usual))
    changes: list[tuple[dict[str, Any], set[int], int]] = [
        ({"text_edits": EDITS | {"swap": 0.5}}, {3}, 2 * 60),
        ({"text_edits": EDITS | {"delete": 0.5}}, set(), 0),
        ({"mixing": {"alpha": 1.0}}, {4}, 60),
        ({"codec": "sign"}, {1, 3}, 4 * 60 + 2 * 8),
        ({"calibration_rows": 9}, set(), 2 * 9),
    ]
    for changed, variants, rows in changes:
        passes.clear()
        assert recomputed(run_in(tmp_path, scores, teacher, augment_settings(**usual | changed)), first) == variants
        assert sum(passes) == rows, changed
    passes.clear()
    assert run_in(tmp_path, scores, teacher, augment_settings(**usual)).shards == first.shards
    assert passes == []


def test_words_are_looked_up_once_for_all_variants_and_again_only_for_other_candidates(
    scores: Path, teacher: Path, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    look_up = MaskedLM.candidates
    monkeypatch.setattr(MaskedLM, "candidates", lambda model, inputs: asked.append(len(inputs)) or look_up(model, inputs))
    model, found = save_masked_lm(tmp_path / "words"), []
    for changed, rows in (({}, 60), ({"replace": 0.9}, 0), ({"candidates": 3}, 60)):
        recipes = [["masked_lm"], ["masked_lm", "perturb"], ["perturb"]]
        asked.clear()
        settings = augment_settings(variants=3, recipes=recipes, masked_lm=PROPOSING | changed)
        found.append(run_in(tmp_path, scores, teacher, settings, model))
        assert sum(asked) == rows, changed
    assert [recomputed(later, found[0]) for later in found[1:]] == [{1, 2}, {1, 2}]
    ids = {variant: Shards(tmp_path / "shards").rows("train", variant).column("input_ids").to_pylist() for variant in (1, 3)}
    assert ids[1] != ids[3] == Shards(scores).rows("train", 0).column("input_ids").to_pylist()


def test_words_found_for_texts_cut_elsewhere_are_not_taken_for_these(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    words = save_masked_lm(tmp_path / "words")
    settings = augment_settings(variants=1, recipes=[["masked_lm"]], masked_lm=PROPOSING | {"replace": 1.0})
    keys = []
    for length in (8, 24):
        shorter = Path(shutil.copytree(teacher, tmp_path / f"teacher {length}"))
        tokenizer = json.loads((shorter / "tokenizer_config.json").read_text())
        (shorter / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"model_max_length": length}))
        score(prepared, shorter, SCORE_SETTINGS, runtime_at(tmp_path), tmp_path / "scores")
        plan = Augmentation.of(tmp_path / "scores", shorter, None, settings, words)
        keys.append([job.key for job in plan.candidates(plan.jobs(0.0, Store(tmp_path / "store")))])
    assert not [key for key in keys[0] if key in keys[1]]
