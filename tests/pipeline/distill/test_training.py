import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers import pipeline as transformers_pipeline

from pipeline.augment.passes import augment, score
from pipeline.config.errors import PipelineError
from pipeline.corpus.task import Split
from pipeline.distill.jobs import StudentJob
from pipeline.distill.launch import obtain
from pipeline.distill.settings import StudentSettings
from pipeline.distill.training import Sources, train
from pipeline.shards.manifest import ShardMismatch, manifest_hash
from pipeline.training.callbacks import NO_CHECKPOINTS
from tests.world import (
    SCORE_SETTINGS,
    augment_settings,
    make_shards,
    make_task,
    make_tokenizer,
    rewrite,
    runtime_at,
    save_prepared,
    save_teacher,
    student_settings,
)

Folders = tuple[Path, Path]
COUNTS: dict[Split, int] = {"train": 16, "dev": 8, "test": 4}


def distill(name: str, scores: Path, shards: Path, teacher: Path, settings: StudentSettings, out: Path) -> dict[str, Any]:
    """Train a student in a store of its own."""
    job = StudentJob(name, scores, shards, teacher, settings)
    return obtain(job, runtime_at(out.parent / f"of-{out.name}"), out, out.with_suffix(".json"))


def test_a_student_comes_to_answer_as_its_teacher(made: Folders, teacher: Path, tmp_path: Path) -> None:
    distill("half", *made, teacher, student_settings({"num_train_epochs": 12}), tmp_path / "half")
    losses = [float(line.split(",")[2]) for line in (tmp_path / "half" / "history.csv").read_text().splitlines()[1:]]
    assert min(losses) < losses[0] / 2


@pytest.fixture(scope="module")
def half(made: Folders, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that learns from its variants in rotation; read only."""
    out = tmp_path_factory.mktemp("half") / "half"
    distill("half", *made, teacher, student_settings(), out)
    return out


def test_a_student_is_a_plain_hugging_face_folder(half: Path, made: Folders) -> None:
    assert not list(half.glob("*.bin")) + list(half.glob("*.pt"))
    answer = transformers_pipeline("text-classification", str(half))("word1 word2")
    assert answer[0]["label"] in ("bad", "good")
    assert AutoTokenizer.from_pretrained(half)("word1")["input_ids"] == make_tokenizer()("word1")["input_ids"]
    assert AutoModelForSequenceClassification.from_pretrained(half).config.num_hidden_layers == 2
    facts, card = json.loads((half / "lineage.json").read_text()), (half / "README.md").read_text()
    assert facts["teacher"] in card
    assert facts["shards"] == manifest_hash(made[1]) in card
    assert (half / "history.csv").read_text().splitlines()[0] == "epoch,step,loss,dev"


@pytest.mark.parametrize("use", ["rotate", "none", "all", {"worst_of": 2}])
def test_equal_settings_give_equal_weights_and_every_use_of_variants_others(
    use: Any, half: Path, made: Folders, teacher: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "absent" if use == "none" else made[1]
    facts = distill("half", made[0], shards, teacher, student_settings(variants=use), tmp_path / "used")
    one, two = ((folder / "model.safetensors").read_bytes() for folder in (half, tmp_path / "used"))
    assert (one == two) == (use == "rotate")
    assert (facts["shards"] is None) == (use == "none")


def test_a_regression_of_pairs_goes_all_the_way(tmp_path: Path) -> None:
    task = make_task("regression", pair=True)
    teacher = save_teacher(tmp_path / "teacher", task)
    scores, shards = make_shards(tmp_path, save_prepared(tmp_path / "prepared", task, COUNTS), teacher)
    facts = distill("half", scores, shards, teacher, student_settings(), tmp_path / "half")
    assert -1.0 <= facts["dev"] <= 1.0
    assert -1.0 <= facts["teacher_dev"] <= 1.0


def other_weights(teacher: Path) -> None:
    save_teacher(teacher, make_task(), seed=5)


def other_order(teacher: Path) -> None:
    rewrite(teacher / "config.json", id2label={"0": "good", "1": "bad"}, label2id={"good": 0, "bad": 1})


def other_tokenizer(teacher: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(teacher)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (other_weights, r"teacher: \w+… wanted, \w+… found"),
        (other_order, r'labels: \["good", "bad"\] wanted, \["bad", "good"\] found'),
        (other_tokenizer, r"tokenizer: \w+… wanted, \w+… found"),
    ],
)
def test_scores_of_another_teacher_are_rejected_by_what_differs(
    change: Callable[[Path], None], difference: str, made: Folders, teacher: Path, tmp_path: Path
) -> None:
    change(other := Path(shutil.copytree(teacher, tmp_path / "other")))
    with pytest.raises(ShardMismatch, match=rf"the scores in .* do not fit: .*{difference}.*dvc repro"):
        distill("half", *made, other, student_settings(), tmp_path / "half")


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


def test_variants_that_do_not_allow_the_use_are_rejected(made: Folders, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"worst_of: 3 is asked for, but the shards hold 2 variants"):
        distill("half", *made, teacher, student_settings(variants={"worst_of": 3}), tmp_path / "half")
    augment(made[0], teacher, None, augment_settings(variants=0), runtime_at(tmp_path), tmp_path / "shards")
    with pytest.raises(ShardMismatch, match=r"holds no variant; set augment.variants above 0, or variants: none for"):
        distill("half", made[0], tmp_path / "shards", teacher, student_settings(), tmp_path / "half")
    assert not (tmp_path / "half").exists()


def test_labels_alone_teach_nothing_where_no_train_row_has_one(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    """A scout sees no variants, although the section distill has them rotate."""
    corpus = Path(shutil.copytree(prepared, tmp_path / "prepared"))
    table = pq.read_table(corpus / "train.parquet")
    without = pa.nulls(len(table), table.schema.field("label").type)
    pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", without), corpus / "train.parquet")
    score(corpus, teacher, SCORE_SETTINGS, runtime_at(tmp_path), tmp_path / "scores")
    weights = student_settings().objective.model_dump() | {"hard": 1.0, "soft": 0.0}
    with pytest.raises(PipelineError, match="half: no train row has a label, and nothing else is learnt from; set objective"):
        train("half", Sources.open(teacher, tmp_path / "scores", None), student_settings(objective=weights), NO_CHECKPOINTS)


def test_float16_is_refused_without_a_gpu(made: Folders, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="float16 needs a GPU; use precision: bfloat16 or float32"):
        distill("half", *made, teacher, student_settings({"precision": "float16"}), tmp_path / "half")


def test_an_unknown_service_is_refused_by_name(made: Folders, teacher: Path, tmp_path: Path) -> None:
    runtime = runtime_at(tmp_path).model_copy(update={"report_to": ["nowhere"]})
    job = StudentJob("half", *made, teacher, student_settings())
    with pytest.raises(PipelineError, match=r"runtime.report_to names nowhere, which is not installed; installed are"):
        obtain(job, runtime, tmp_path / "half", tmp_path / "cost.json")
