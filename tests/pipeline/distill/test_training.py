import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers import pipeline as transformers_pipeline

from pipeline.config.errors import PipelineError
from pipeline.config.corpus import Split
from pipeline.distill.jobs import StudentJob
from pipeline.distill.launch import obtain
from pipeline.config.settings import StudentSettings
from pipeline.distill.training import Sources, train
from pipeline.shards.manifest import ShardMismatch, manifest_hash
from pipeline.training.callbacks import NO_CHECKPOINTS
from tests.world import (
    AUGMENT_SETTINGS,
    make_shards,
    make_task,
    make_tokenizer,
    runtime_at,
    save_prepared,
    save_teacher,
    student_settings,
)

Folders = tuple[Path, Path]
COUNTS: dict[Split, int] = {"train": 40, "dev": 10, "test": 10}


def distill(name: str, scores: Path, shards: Path, teacher: Path, settings: StudentSettings, out: Path) -> dict[str, Any]:
    """Train a student in a store of its own."""
    job = StudentJob(name, scores, shards, teacher, settings)
    return obtain(job, runtime_at(out.parent / f"of-{out.name}"), out, out.with_suffix(".json"))


def test_a_student_comes_to_answer_as_its_teacher(made: Folders, teacher: Path, tmp_path: Path) -> None:
    distill("half", *made, teacher, student_settings({"num_train_epochs": 20}), tmp_path / "half")
    losses = [float(line.split(",")[2]) for line in (tmp_path / "half" / "history.csv").read_text().splitlines()[1:]]
    assert len(losses) == 20
    assert min(losses) < losses[0] / 2


def test_a_student_is_a_plain_hugging_face_folder(made: Folders, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "half"
    facts = distill("half", *made, teacher, student_settings(), out)
    assert not list(out.glob("*.bin")) + list(out.glob("*.pt"))
    answer = transformers_pipeline("text-classification", str(out))("word1 word2")
    assert answer[0]["label"] in ("bad", "good")
    assert AutoTokenizer.from_pretrained(out)("word1")["input_ids"] == make_tokenizer()("word1")["input_ids"]
    assert AutoModelForSequenceClassification.from_pretrained(out).config.num_hidden_layers == 2
    card = (out / "README.md").read_text()
    assert facts["teacher"] in card
    assert manifest_hash(made[1]) in card
    assert json.loads((out / "lineage.json").read_text()) == facts
    assert (out / "history.csv").read_text().splitlines()[0] == "epoch,step,loss,dev"


def test_equal_settings_give_equal_weights(made: Folders, teacher: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        distill("half", *made, teacher, student_settings(), tmp_path / name)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_the_control_learns_without_variants(made: Folders, teacher: Path, tmp_path: Path) -> None:
    facts = distill("plain", made[0], tmp_path / "absent", teacher, student_settings(variants="none"), tmp_path / "plain")
    assert facts["shards"] is None


def test_the_corpus_is_not_needed(teacher: Path, tmp_path: Path) -> None:
    prepared = save_prepared(tmp_path / "prepared", make_task(), COUNTS)
    scores, shards = make_shards(tmp_path, prepared, teacher)
    shutil.rmtree(prepared)
    shutil.rmtree(tmp_path / "store")
    assert distill("half", scores, shards, teacher, student_settings(), tmp_path / "half")["student"] == "half"


@pytest.mark.parametrize(("kind", "pair"), [("classification", True), ("regression", False), ("regression", True)])
def test_pairs_and_regressions_go_all_the_way(kind: str, pair: bool, tmp_path: Path) -> None:
    task = make_task(kind, pair)
    teacher = save_teacher(tmp_path / "teacher", task)
    prepared = save_prepared(tmp_path / "prepared", task, COUNTS)
    scores, shards = make_shards(tmp_path, prepared, teacher)
    facts = distill("half", scores, shards, teacher, student_settings(), tmp_path / "half")
    assert -1.0 <= facts["dev"] <= 1.0
    assert -1.0 <= facts["teacher_dev"] <= 1.0


def changed_teacher(teacher: Path, out: Path, **config: Any) -> Path:
    shutil.copytree(teacher, out)
    held = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(held | config))
    return out


def test_shards_of_another_label_order_are_refused(made: Folders, teacher: Path, tmp_path: Path) -> None:
    swapped = changed_teacher(teacher, tmp_path / "swapped", id2label={"0": "good", "1": "bad"}, label2id={"good": 0, "bad": 1})
    with pytest.raises(ShardMismatch, match=r'labels: \["good", "bad"\] wanted, \["bad", "good"\] found.*dvc repro'):
        distill("half", *made, swapped, student_settings(), tmp_path / "half")


def test_shards_of_another_tokenizer_are_refused(made: Folders, teacher: Path, tmp_path: Path) -> None:
    other = shutil.copytree(teacher, tmp_path / "other")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(other)
    with pytest.raises(ShardMismatch, match=r"the scores in .* do not fit: tokenizer: \w+… wanted, \w+… found.*dvc repro"):
        distill("half", *made, other, student_settings(), tmp_path / "half")


def test_shards_of_another_teacher_are_refused(made: Folders, tmp_path: Path) -> None:
    other = save_teacher(tmp_path / "other", make_task(), seed=5)
    with pytest.raises(ShardMismatch, match=r"do not fit: teacher: \w+… wanted, \w+… found"):
        distill("half", *made, other, student_settings(), tmp_path / "half")


def test_perturbations_of_another_teacher_than_the_scores_are_refused(made: Folders, teacher: Path, tmp_path: Path) -> None:
    other = save_teacher(tmp_path / "other", make_task(), seed=5)
    prepared = save_prepared(tmp_path / "prepared", make_task(), COUNTS)
    _, shards = make_shards(tmp_path, prepared, other)
    with pytest.raises(ShardMismatch, match=r"the perturbations in .* do not fit: teacher"):
        distill("half", made[0], shards, teacher, student_settings(), tmp_path / "half")


def test_perturbations_of_other_scores_are_refused(made: Folders, teacher: Path, tmp_path: Path) -> None:
    prepared = save_prepared(tmp_path / "prepared", make_task(), COUNTS, seed=9)
    _, shards = make_shards(tmp_path, prepared, teacher)
    with pytest.raises(ShardMismatch, match=r"the perturbations in .* do not fit: scores: \w+… wanted, \w+… found.*dvc repro"):
        distill("half", made[0], shards, teacher, student_settings(), tmp_path / "half")


def test_scores_and_variants_are_not_taken_for_each_other(made: Folders, teacher: Path, tmp_path: Path) -> None:
    scores, shards = made
    with pytest.raises(ShardMismatch, match=f"^{scores} holds not variants, which the stage augment writes; name that folder$"):
        distill("half", scores, scores, teacher, student_settings(), tmp_path / "half")
    with pytest.raises(ShardMismatch, match=f"^{shards} holds not the scores of untouched inputs, which the stage score"):
        distill("half", shards, shards, teacher, student_settings(), tmp_path / "half")


def test_a_missing_shard_and_a_flipped_byte_are_named_together(made: Folders, teacher: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(made[1], tmp_path / "shards")
    gone, broken, *_ = sorted(shards.glob("*.arrow"))
    gone.unlink()
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 1
    broken.unlink()
    broken.write_bytes(content)
    with pytest.raises(ShardMismatch) as refusal:
        distill("half", made[0], shards, teacher, student_settings(), tmp_path / "half")
    assert f"{gone.name} is missing" in str(refusal.value)
    assert f"{broken.name} has other bytes than when it was written" in str(refusal.value)
    assert "dvc repro" in str(refusal.value)
    assert not (tmp_path / "half").exists()


def test_a_student_from_scratch_learns_without_stored_perturbations(made: Folders, teacher: Path, tmp_path: Path) -> None:
    distill("new", *made, teacher, student_settings(start="scratch", variants="none"), tmp_path / "new")


def test_no_variants_are_refused_where_they_are_wanted(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    scores, shards = make_shards(tmp_path, prepared, teacher, AUGMENT_SETTINGS.model_copy(update={"variants": 0}))
    with pytest.raises(ShardMismatch, match=r"holds no variant; set augment.variants above 0, or variants: none for"):
        distill("half", scores, shards, teacher, student_settings(), tmp_path / "half")


def test_a_use_that_the_variants_do_not_allow_is_refused(made: Folders, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"worst_of: 3 is asked for, but the shards hold 2 variants"):
        distill("half", *made, teacher, student_settings(variants={"worst_of": 3}), tmp_path / "half")
    assert not (tmp_path / "half").exists()


@pytest.mark.parametrize("variants", ["none", "rotate"])
def test_labels_alone_teach_nothing_where_no_train_row_has_one(
    variants: str, prepared: Path, teacher: Path, tmp_path: Path
) -> None:
    """A scout sees no variants, whatever policy the section distill has."""
    corpus = Path(shutil.copytree(prepared, tmp_path / "prepared"))
    table = pq.read_table(corpus / "train.parquet")
    without = pa.nulls(len(table), table.schema.field("label").type)
    pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", without), corpus / "train.parquet")
    scores, _ = make_shards(tmp_path, corpus, teacher)
    weights = student_settings().objective.model_dump() | {"hard": 1.0, "soft": 0.0}
    with pytest.raises(PipelineError, match="half: no train row has a label, and nothing else is learnt from; set objective"):
        train(
            "half", Sources.open(teacher, scores, None), student_settings(variants=variants, objective=weights), NO_CHECKPOINTS
        )


@pytest.mark.parametrize("use", ["rotate", "all", {"worst_of": 2}])
def test_every_use_of_variants_is_another_training(use: Any, made: Folders, teacher: Path, tmp_path: Path) -> None:
    distill("half", *made, teacher, student_settings(variants=use), tmp_path / "used")
    distill("half", *made, teacher, student_settings(variants="none"), tmp_path / "none")
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("used", "none"))
    assert one != two


def test_pieces_and_schedules_are_settings_of_the_optimiser(made: Folders, teacher: Path, tmp_path: Path) -> None:
    def weights(name: str, **changes: Any) -> bytes:
        distill("half", *made, teacher, student_settings(changes), tmp_path / name)
        return (tmp_path / name / "model.safetensors").read_bytes()

    usual = weights("usual")
    changes = {"cosine": {"lr_scheduler_type": "cosine"}, "clipped": {"max_grad_norm": 1e-3}, "bf16": {"precision": "bfloat16"}}
    for name, change in changes.items():
        assert weights(name, **change) != usual, name


def test_float16_is_refused_without_a_gpu(made: Folders, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="float16 needs a GPU; use precision: bfloat16 or float32"):
        distill("half", *made, teacher, student_settings({"precision": "float16"}), tmp_path / "half")


def test_an_unknown_service_is_refused_by_name(made: Folders, teacher: Path, tmp_path: Path) -> None:
    runtime = runtime_at(tmp_path).model_copy(update={"report_to": ["nowhere"]})
    job = StudentJob("half", *made, teacher, student_settings())
    with pytest.raises(PipelineError, match=r"runtime.report_to names nowhere, which is not installed; installed are"):
        obtain(job, runtime, tmp_path / "half", tmp_path / "cost.json")
