import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from pipeline.augment.batches import Inputs
from pipeline.augment.candidates import MaskedLM
from pipeline.augment.passes import augment, soft_label
from pipeline.augment.plans import Augmentation, soft_label_jobs
from pipeline.augment.teacher import FrozenModel
from pipeline.config.errors import PipelineError
from pipeline.config.settings import AugmentSettings
from pipeline.distill.dataset import followed_in
from pipeline.models.folder import ModelFolder
from pipeline.perturbation.surrogate import SurrogateFolder
from pipeline.shards.manifest import Manifest, ShardMismatch, lineage
from pipeline.shards.reader import Shards
from tests.world import INFERENCE, augment_settings, make_task, runtime_at, save_masked_lm, save_surrogate, save_teacher

FROM_SURROGATE = augment_settings({"gradient_from": "surrogate"})
EDITS = {"mask": 0.2, "delete": 0.2, "swap": 0.2, "span": 0.5}
REPLACEMENT = {"replace": 0.4, "candidates": 5}


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every call of a teacher or surrogate."""
    counted: list[int] = []
    logits_at = FrozenModel.logits_at

    def counting(model: FrozenModel, batch: dict[str, Tensor], embeddings: Tensor) -> Tensor:
        counted.append(len(embeddings))
        return logits_at(model, batch, embeddings)

    monkeypatch.setattr(FrozenModel, "logits_at", counting)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    return counted


def surrogate_of(folder: Path, teacher: Path, changed: dict[str, Any], checkpoints: int = 2) -> Path:
    return save_surrogate(folder, range(11, 11 + checkpoints), key=lineage(ModelFolder(teacher)) | changed).folder.parent


def recomputed(manifest: Manifest, before: Manifest) -> set[int]:
    """Variants with new shards; requires that all shards of a variant are new or none."""
    known = {entry.receipt.sha256 for entry in before.shards}
    new = {entry.variant for entry in manifest.shards if entry.receipt.sha256 not in known}
    assert not {entry.variant for entry in manifest.shards if entry.receipt.sha256 in known} & new
    return new


def test_another_teacher_is_rejected_by_the_fields_that_differ(soft_labels: Path, prepared: Path, tmp_path: Path) -> None:
    other = save_teacher(tmp_path / "other", make_task(), seed=1)
    sentence = rf"^the soft labels in {soft_labels} do not fit: teacher: [^;]*Make them again with this teacher: dvc repro$"
    with pytest.raises(ShardMismatch, match=sentence):
        Augmentation.of(soft_labels, other, augment_settings())
    other = save_teacher(tmp_path / "other", make_task(labels=("good", "bad")))
    with pytest.raises(ShardMismatch, match=r'labels: \["good", "bad"\] wanted, \["bad", "good"\] found'):
        Augmentation.of(soft_labels, other, augment_settings())
    other = save_teacher(tmp_path / "other", make_task("regression"))
    with pytest.raises(PipelineError, match=r"other was trained for another task than .*: kind 'regression' in place of"):
        soft_label_jobs(prepared, ModelFolder(other), INFERENCE)


def test_variants_are_not_taken_for_soft_labels(made: tuple[Path, Path], teacher: Path) -> None:
    with pytest.raises(ShardMismatch, match=r"does not hold soft labels; name a folder that the stage soft_label wrote$"):
        Augmentation.of(made[1], teacher, augment_settings())


def test_a_missing_model_is_named_with_its_option(soft_labels: Path, teacher: Path) -> None:
    with pytest.raises(PipelineError, match=r"^a recipe contains masked_lm: give .* --masked-lm$"):
        Augmentation.of(soft_labels, teacher, augment_settings(recipes=[["masked_lm"]]))
    with pytest.raises(PipelineError, match=r"^gradient_from is surrogate: give .* --surrogate$"):
        Augmentation.of(soft_labels, teacher, FROM_SURROGATE)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"teacher": "0" * 64}, r"teacher: [0-9a-f]{12}… wanted, 0{12}… found"),
        ({"tokenizer": None}, r"tokenizer: [0-9a-f]{12}… wanted, null found"),
    ],
)
def test_a_surrogate_of_something_else_is_rejected_by_the_name_of_the_field(
    soft_labels: Path, teacher: Path, tmp_path: Path, changed: dict[str, Any], sentence: str
) -> None:
    surrogate = surrogate_of(tmp_path / "surrogate", teacher, changed, 1)
    sentence = rf"^the checkpoints of the surrogate in {surrogate}/1 do not fit: {sentence}\. Make them again with this teacher"
    with pytest.raises(ShardMismatch, match=sentence):
        Augmentation.of(soft_labels, teacher, FROM_SURROGATE, surrogate)


def test_a_changed_checkpoint_computes_the_variants_that_follow_it(
    soft_labels: Path, teacher: Path, tmp_path: Path, passes: list[int]
) -> None:
    surrogate = surrogate_of(tmp_path / "surrogate", teacher, {})
    settings = augment_settings({"gradient_from": "surrogate"}, variants=3, recipes=[["perturb"], ["perturb"], ["mask"]])

    def run(name: str) -> Manifest:
        passes.clear()
        return augment(Augmentation.of(soft_labels, teacher, settings, surrogate), runtime_at(tmp_path), tmp_path / name)

    first = run("first")
    assert run("again") == first
    assert passes == []
    assert first.details["checkpoints"] == 2
    save_teacher(SurrogateFolder(surrogate / "1").checkpoint(2), make_task(), seed=13)
    assert recomputed(run("second"), first) == {2}
    assert followed_in(first) == [1, 2, None]
    calibration = 3 * settings.calibration_rows
    assert sum(passes) == 2 * 60 + calibration


def run_in(folder: Path, soft_labels: Path, teacher: Path, settings: AugmentSettings, words: Path | None = None) -> Manifest:
    return augment(Augmentation.of(soft_labels, teacher, settings, masked_lm=words), runtime_at(folder), folder / "shards")


def test_a_changed_setting_computes_the_variants_that_use_it_and_no_others(
    soft_labels: Path, teacher: Path, tmp_path: Path, passes: list[int]
) -> None:
    usual: dict[str, Any] = {"variants": 4, "recipes": [["perturb"], ["mask"], ["swap", "perturb"], ["delete"]]}
    first = run_in(tmp_path, soft_labels, teacher, augment_settings(**usual))
    changes: list[tuple[dict[str, Any], set[int], int]] = [
        ({"text_edits": EDITS | {"swap": 0.5}}, {3}, 2 * 60),
        ({"text_edits": EDITS | {"delete": 0.5}}, {4}, 60),
        ({"text_edits": EDITS | {"span": 0.4}}, set(), 0),
        ({"codec": "sign"}, {1, 3}, 4 * 60 + 3 * 8),
        ({"calibration_rows": 9}, set(), 3 * 9),
    ]
    for changed, variants, rows in changes:
        passes.clear()
        assert recomputed(run_in(tmp_path, soft_labels, teacher, augment_settings(**usual | changed)), first) == variants
        assert sum(passes) == rows, changed
    passes.clear()
    assert run_in(tmp_path, soft_labels, teacher, augment_settings(**usual)).shards == first.shards
    assert passes == []


def test_candidates_are_computed_once_for_all_variants_and_again_only_with_other_settings(
    soft_labels: Path, teacher: Path, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    candidates = MaskedLM.candidates

    def noted(model: MaskedLM, inputs: Inputs) -> Any:
        asked.append(len(inputs))
        return candidates(model, inputs)

    monkeypatch.setattr(MaskedLM, "candidates", noted)
    model, found = save_masked_lm(tmp_path / "words"), []
    for changed, rows in (({}, 60), ({"replace": 0.9}, 0), ({"candidates": 3}, 60)):
        recipes = [["masked_lm"], ["masked_lm", "perturb"], ["perturb"]]
        asked.clear()
        settings = augment_settings(variants=3, recipes=recipes, masked_lm=REPLACEMENT | changed)
        found.append(run_in(tmp_path, soft_labels, teacher, settings, model))
        assert sum(asked) == rows, changed
    assert [recomputed(later, found[0]) for later in found[1:]] == [{1, 2}, {1, 2}]
    ids = {variant: Shards(tmp_path / "shards").rows("train", variant).column("input_ids").to_pylist() for variant in (1, 3)}
    assert ids[1] != ids[3] == Shards(soft_labels).rows("train", 0).column("input_ids").to_pylist()


def test_candidates_of_texts_of_another_max_length_are_not_used(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    words = save_masked_lm(tmp_path / "words")
    settings = augment_settings(variants=1, recipes=[["masked_lm"]], masked_lm=REPLACEMENT | {"replace": 1.0})
    keys = []
    for length in (8, 24):
        shorter = Path(shutil.copytree(teacher, tmp_path / f"teacher {length}"))
        tokenizer = json.loads((shorter / "tokenizer_config.json").read_text())
        (shorter / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"model_max_length": length}))
        soft_label(prepared, shorter, INFERENCE, runtime_at(tmp_path), tmp_path / "soft_labels")
        plan = Augmentation.of(tmp_path / "soft_labels", shorter, settings, masked_lm=words)
        keys.append([job.key for job in plan.candidates(plan.jobs(0.0))])
    assert not [key for key in keys[0] if key in keys[1]]
