import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from torch import Tensor

from pipeline.augment import plans
from pipeline.augment.candidates import MaskedLM
from pipeline.augment.passes import augment, score
from pipeline.augment.plans import Augmentation, scoring
from pipeline.config.settings import AugmentSettings
from pipeline.augment.scoring import CandidatesJob
from pipeline.augment.teacher import FrozenModel
from pipeline.config.errors import PipelineError
from pipeline.distill.dataset import aims_in
from pipeline.models.folder import model_hash
from pipeline.shards.manifest import Manifest, ShardMismatch, lineage
from pipeline.shards.reader import Shards
from pipeline.store.files import write_json
from pipeline.store.keys import hash_of
from pipeline.store.store import Store
from pipeline.training.masked_lm import WORDS_FILE, WordsFacts
from tests.world import (
    SCORE_SETTINGS,
    augment_settings,
    make_task,
    runtime_at,
    save_masked_lm,
    save_prepared,
    save_scout,
    save_teacher,
)

EDITS = {"mask": 0.2, "delete": 0.2, "swap": 0.2, "span": 0.5}


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


def test_scores_of_another_teacher_are_refused_by_the_name_of_the_field(scores: Path, tmp_path: Path) -> None:
    other = save_teacher(tmp_path / "other", make_task(), seed=1)
    with pytest.raises(ShardMismatch) as refusal:
        Augmentation.of(scores, other, None, augment_settings())
    text = str(refusal.value)
    assert text.startswith(f"the scores in {scores} do not fit: teacher: ")
    assert text.endswith("Score again with this teacher: dvc repro")
    assert "; " not in text, "nothing but the teacher differs"


def test_scores_of_another_label_order_are_refused_by_the_name_of_the_field(scores: Path, tmp_path: Path) -> None:
    other = save_teacher(tmp_path / "other", make_task(labels=("good", "bad")))
    with pytest.raises(ShardMismatch, match=r'labels: \["good", "bad"\] wanted, \["bad", "good"\] found'):
        Augmentation.of(scores, other, None, augment_settings())


def test_scores_that_were_tampered_with_are_not_augmented(scores: Path, teacher: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(scores, tmp_path / "scores"))
    target = copied / Shards(copied).manifest.shards[0].file
    target.write_bytes(target.read_bytes()[:-8])
    with pytest.raises(ShardMismatch, match=rf"{target.name} has \d+ bytes, the manifest says \d+"):
        Augmentation.of(copied, teacher, None, augment_settings())


def test_variants_are_not_taken_for_scores(made: tuple[Path, Path], teacher: Path) -> None:
    with pytest.raises(ShardMismatch, match=r"holds not the scores of untouched inputs, which the stage score writes; name"):
        Augmentation.of(made[1], teacher, None, augment_settings())


def test_the_teacher_of_another_task_scores_nothing(prepared: Path, tmp_path: Path) -> None:
    other = save_teacher(tmp_path / "other", make_task("regression"))
    with pytest.raises(PipelineError, match=r"other was taught another task than that in .*: kind 'regression' in place of"):
        scoring(prepared, other, SCORE_SETTINGS)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"teacher": "0" * 64}, r"teacher: [0-9a-f]{12}… wanted, 0{12}… found"),
        ({"labels": ["good", "bad"]}, r'labels: \["bad", "good"\] wanted, \["good", "bad"\] found'),
        ({"tokenizer": None}, r"tokenizer: [0-9a-f]{12}… wanted, null found"),
    ],
)
def test_a_scout_of_something_else_is_refused_by_the_name_of_the_field(
    scores: Path, teacher: Path, tmp_path: Path, changed: dict[str, Any], sentence: str
) -> None:
    scout = scout_of(tmp_path / "scout", teacher, changed, 1)
    with pytest.raises(
        ShardMismatch, match=rf"the snapshots of the scout in {scout} do not fit: {sentence}\. Make it again"
    ) as refusal:
        Augmentation.of(scores, teacher, scout, augment_settings())
    assert "; " not in str(refusal.value), "nothing else differs"


def test_a_folder_that_is_no_scout_is_refused(scores: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=rf"^{tmp_path} is no scout: it has no scout\.json"):
        Augmentation.of(scores, teacher, tmp_path, augment_settings())


def test_a_note_that_there_is_no_masked_language_model_is_none(scores: Path, teacher: Path, tmp_path: Path) -> None:
    none = save_masked_lm(tmp_path / "none")
    write_json(none / WORDS_FILE, WordsFacts(model=None).model_dump())
    proposing = {"replace": 0.4, "candidates": 5, "batch_rows": 16}
    settings = augment_settings(recipes=[["masked_lm"]], masked_lm=proposing)
    with pytest.raises(PipelineError, match=r"^a recipe asks for masked_lm, but the task's words is null"):
        Augmentation.of(scores, teacher, None, settings, none)
    with pytest.raises(PipelineError, match=r"^a recipe asks for masked_lm: give the folder that the stage words wrote"):
        Augmentation.of(scores, teacher, None, settings)
    with pytest.raises(PipelineError, match=r"has no words\.json; the stage words writes it"):
        Augmentation.of(scores, teacher, None, settings, teacher)
    assert Augmentation.of(scores, teacher, None, augment_settings(), none).masked_lm is None


def test_the_manifest_says_where_the_words_come_from(scores: Path, teacher: Path, tmp_path: Path) -> None:
    proposing = {"replace": 0.4, "candidates": 5, "batch_rows": 16}
    settings = augment_settings(variants=1, recipes=[["masked_lm"]], masked_lm=proposing)
    manifest = run_in(tmp_path, scores, teacher, settings, save_masked_lm(tmp_path / "words"))
    assert manifest.details["words"] == {"model": "some", "fitted": False, "perplexity": None}
    edited = augment_settings(variants=1, recipes=[["mask"]])
    assert run_in(tmp_path, scores, teacher, edited).details["words"] is None


def test_what_does_not_fit_is_said_before_a_scout_is_read(scores: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"^the objective noise follows no gradient"):
        Augmentation.of(scores, teacher, tmp_path / "nowhere", augment_settings({"objective": "noise"}))


def test_flips_of_a_regression_are_refused_before_anything_is_computed(tmp_path: Path, passes: list[int]) -> None:
    task = make_task("regression")
    prepared = save_prepared(tmp_path / "prepared", task, {"train": 12, "dev": 4, "test": 4})
    teacher = save_teacher(tmp_path / "teacher", task)
    score(prepared, teacher, SCORE_SETTINGS, runtime_at(tmp_path), tmp_path / "scores")
    passes.clear()
    asked = augment_settings({"radius": {"flips": 0.1}})
    with pytest.raises(PipelineError, match=r"^the answers of a regression do not flip"):
        augment(tmp_path / "scores", teacher, None, asked, runtime_at(tmp_path), tmp_path / "shards")
    assert passes == []


def test_a_shard_s_key_names_the_snapshot_it_is_aimed_at_in_turn(scores: Path, teacher: Path, tmp_path: Path) -> None:
    scout = scout_of(tmp_path / "scout", teacher, {})
    plan = Augmentation.of(scores, teacher, scout, augment_settings(variants=4, recipes=[["perturb"]] * 3 + [["mask"]]))
    named = {job.variant: (job.key.get("scout"), job.making.snapshot) for job in plan.jobs(0.2, Store(tmp_path))}
    one, two = (hash_of([model_hash(scout / f"snapshot-{number}"), None]) for number in (1, 2))
    assert one != two
    assert named == {1: (one, 1), 2: (two, 2), 3: (one, 1), 4: (None, None)}


def test_a_changed_snapshot_computes_only_the_variants_aimed_at_it(
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


def test_a_recipe_added_at_the_end_computes_only_the_variants_whose_recipe_changed(
    scores: Path, teacher: Path, tmp_path: Path, passes: list[int]
) -> None:
    first = run_in(tmp_path, scores, teacher, augment_settings(variants=4, recipes=[["perturb"], ["mask"]]))
    passes.clear()
    more = augment_settings(variants=4, recipes=[["perturb"], ["mask"], ["swap"]])
    assert recomputed(run_in(tmp_path, scores, teacher, more), first) == {3, 4}
    assert sum(passes) == 60 + 2 * 60, "variant 3 now swaps, variant 4 is now perturbed"


@pytest.mark.parametrize(
    ("changed", "variants", "rows"),
    [
        ({"text_edits": EDITS | {"mask": 0.5}}, {2}, 60),
        ({"text_edits": EDITS | {"swap": 0.5}}, {3}, 2 * 60),
        ({"text_edits": EDITS | {"delete": 0.5}}, set(), 0),
        ({"mixing": {"alpha": 1.0}}, {4}, 60),
        ({"codec": "sign"}, {1, 3}, 4 * 60 + 2 * 8),
        ({"calibration_rows": 9}, set(), 2 * 9),
    ],
)
def test_a_changed_setting_computes_the_variants_that_use_it_and_no_others(
    scores: Path, teacher: Path, tmp_path: Path, passes: list[int], changed: dict[str, Any], variants: set[int], rows: int
) -> None:
    usual: dict[str, Any] = {"variants": 4, "recipes": [["perturb"], ["mask"], ["swap", "perturb"], ["mix"]]}
    first = run_in(tmp_path, scores, teacher, augment_settings(**usual))
    passes.clear()
    assert recomputed(run_in(tmp_path, scores, teacher, augment_settings(**usual | changed)), first) == variants
    assert sum(passes) == rows
    passes.clear()
    assert run_in(tmp_path, scores, teacher, augment_settings(**usual)).shards == first.shards
    assert passes == []


def test_words_are_looked_up_once_for_all_variants_and_again_only_for_other_candidates(
    scores: Path, teacher: Path, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    look_up = MaskedLM.candidates
    monkeypatch.setattr(MaskedLM, "candidates", lambda model, inputs: asked.append(len(inputs)) or look_up(model, inputs))
    model, words, found = save_masked_lm(tmp_path / "words"), {"replace": 0.4, "candidates": 5, "batch_rows": 16}, []
    for changed, rows in (({}, 60), ({"replace": 0.9}, 0), ({"candidates": 3}, 60)):
        recipes = [["masked_lm"], ["masked_lm", "perturb"], ["perturb"]]
        asked.clear()
        settings = augment_settings(variants=3, recipes=recipes, masked_lm=words | changed)
        found.append(run_in(tmp_path, scores, teacher, settings, model))
        assert sum(asked) == rows, changed
    assert [recomputed(later, found[0]) for later in found[1:]] == [{1, 2}, {1, 2}]
    ids = {variant: Shards(tmp_path / "shards").rows("train", variant).column("input_ids").to_pylist() for variant in (1, 3)}
    assert ids[1] != ids[3] == Shards(scores).rows("train", 0).column("input_ids").to_pylist()


def test_a_masked_language_model_is_hashed_once_however_many_jobs_there_are(
    scores: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, hashed = save_masked_lm(tmp_path / "words"), []
    monkeypatch.setattr(plans, "model_hash", lambda source: hashed.append(source) or "hash")
    words = {"replace": 0.4, "candidates": 5, "batch_rows": 16}
    settings = augment_settings(variants=4, recipes=[["masked_lm"]], masked_lm=words)
    plan = Augmentation.of(scores, teacher, None, settings, folder)
    jobs = plan.jobs(0.0, Store(tmp_path))
    needed: list[CandidatesJob] = plan.candidates(jobs[1:3])
    assert (hashed, plan.masked_lm_hash) == ([folder], "hash")
    assert [job.partition for job in needed] == sorted({job.partition for job in jobs[1:3]})


def test_the_calibration_sample_is_the_same_rows_however_the_corpus_is_cut_into_shards(
    scores: Path, prepared: Path, teacher: Path, tmp_path: Path
) -> None:
    whole = SCORE_SETTINGS.model_copy(update={"rows_per_shard": 1000})
    score(prepared, teacher, whole, runtime_at(tmp_path), tmp_path / "scores")
    folders = {1: tmp_path / "scores", 4: scores}
    settings = augment_settings(calibration_rows=9)
    drawn = {}
    for shards, folder in folders.items():
        plan = Augmentation.of(folder, teacher, None, settings)
        assert len(plan.entries()) >= shards
        inputs = plan.calibration[1].scored.inputs
        rows = {row.example_id: row.input_ids.tolist() for row in Shards(folder).rows("train", 0)}
        assert [rows[example_id] for example_id in inputs.example_ids] == [ids.tolist() for ids in inputs.input_ids]
        drawn[shards] = set(inputs.example_ids)
    assert drawn[1] == drawn[4]
    assert len(drawn[1]) == 9


def test_words_found_for_texts_cut_elsewhere_are_not_taken_for_these(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    words = save_masked_lm(tmp_path / "words")
    proposing = {"replace": 1.0, "candidates": 3, "batch_rows": 16}
    settings = augment_settings(variants=1, recipes=[["masked_lm"]], masked_lm=proposing)
    found = {}
    for length in (8, 24):
        shorter = Path(shutil.copytree(teacher, tmp_path / f"teacher {length}"))
        tokenizer = json.loads((shorter / "tokenizer_config.json").read_text())
        (shorter / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"model_max_length": length}))
        for store in ("shared", f"own {length}"):
            out = tmp_path / store / str(length)
            runtime = runtime_at(tmp_path / store)
            score(prepared, shorter, SCORE_SETTINGS, runtime, out / "scores")
            augment(out / "scores", shorter, None, settings, runtime, out / "shards", words)
            found[store, length] = Shards(out / "shards").rows("train", 1).column("input_ids").to_pylist()
        assert found["shared", length] == found[f"own {length}", length]
