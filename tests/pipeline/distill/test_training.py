import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers import pipeline as transformers_pipeline

from pipeline.augment.passes import augment, soft_label
from pipeline.augment.plans import Augmentation
from pipeline.config.corpus import Split
from pipeline.config.errors import PipelineError
from pipeline.config.settings import StudentSettings
from pipeline.distill.jobs import StudentJob
from pipeline.distill.launch import obtain
from pipeline.distill.training import Sources, train
from pipeline.models.folder import ModelFolder
from pipeline.models.forward import Scale
from pipeline.shards.manifest import ShardMismatch, manifest_hash
from pipeline.training.callbacks import NO_CHECKPOINTS
from tests.stored import flip_byte
from tests.world import (
    INFERENCE,
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


def distill(name: str, soft_labels: Path, shards: Path, teacher: Path, settings: StudentSettings, out: Path) -> dict[str, Any]:
    """Train a student in a store of its own."""
    job = StudentJob(name, soft_labels, shards, teacher, settings)
    return obtain(job, runtime_at(out.parent / f"of-{out.name}"), out, out.with_suffix(".json"))


def test_a_student_comes_to_predict_as_its_teacher(made: Folders, teacher: Path, tmp_path: Path) -> None:
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
    predicted = transformers_pipeline("text-classification", str(half))("word1 word2")
    assert predicted[0]["label"] in ("bad", "good")
    assert AutoTokenizer.from_pretrained(half)("word1")["input_ids"] == make_tokenizer()("word1")["input_ids"]
    assert AutoModelForSequenceClassification.from_pretrained(half).config.num_hidden_layers == 2
    facts, card = json.loads((half / "lineage.json").read_text()), (half / "README.md").read_text()
    assert facts["teacher"] in card
    assert facts["shards"] == manifest_hash(made[1]) in card
    assert (half / "history.csv").read_text().splitlines()[0] == "epoch,step,loss,dev"


@pytest.mark.parametrize("use", ["rotate", "none", "all"])
def test_equal_settings_give_equal_weights_and_every_use_of_variants_others(
    use: Any, half: Path, made: Folders, teacher: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "absent" if use == "none" else made[1]
    facts = distill("half", made[0], shards, teacher, student_settings(variant_policy=use), tmp_path / "used")
    one, two = ((folder / "model.safetensors").read_bytes() for folder in (half, tmp_path / "used"))
    assert (one == two) == (use == "rotate")
    assert (facts["shards"] is None) == (use == "none")


def test_a_regression_of_pairs_goes_all_the_way(tmp_path: Path) -> None:
    task = make_task("regression", pair=True)
    teacher = save_teacher(tmp_path / "teacher", task)
    soft_labels, shards = make_shards(tmp_path, save_prepared(tmp_path / "prepared", task, COUNTS), teacher)
    facts = distill("half", soft_labels, shards, teacher, student_settings(), tmp_path / "half")
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
def test_soft_labels_of_another_teacher_are_rejected_by_what_differs(
    change: Callable[[Path], None], difference: str, made: Folders, teacher: Path, tmp_path: Path
) -> None:
    change(other := Path(shutil.copytree(teacher, tmp_path / "other")))
    with pytest.raises(ShardMismatch, match=rf"the soft labels in .* do not fit: .*{difference}.*dvc repro"):
        distill("half", *made, other, student_settings(), tmp_path / "half")


def test_perturbations_of_other_soft_labels_are_rejected(made: Folders, teacher: Path, tmp_path: Path) -> None:
    prepared = save_prepared(tmp_path / "prepared", make_task(), COUNTS, seed=9)
    _, shards = make_shards(tmp_path, prepared, teacher)
    with pytest.raises(ShardMismatch, match=r"the variants in .* do not fit: soft_labels: \w+… wanted, \w+… found.*dvc repro"):
        distill("half", made[0], shards, teacher, student_settings(), tmp_path / "half")


def test_soft_labels_and_variants_are_not_taken_for_each_other(made: Folders, teacher: Path, tmp_path: Path) -> None:
    soft_labels, shards = made
    with pytest.raises(
        ShardMismatch, match=f"^{soft_labels} does not hold variants; name a folder that the stage augment wrote$"
    ):
        distill("half", soft_labels, soft_labels, teacher, student_settings(), tmp_path / "half")
    with pytest.raises(ShardMismatch, match=f"^{shards} does not hold soft labels; name a folder that the stage soft_label"):
        distill("half", shards, shards, teacher, student_settings(), tmp_path / "half")


def test_a_damaged_shard_ends_the_training_and_is_named(made: Folders, teacher: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(made[1], tmp_path / "shards")
    broken = min(shards.glob("*.arrow"))
    flip_byte(broken)
    with pytest.raises(ShardMismatch, match=f"{broken.name} has other bytes than when it was written .*dvc repro"):
        distill("half", made[0], shards, teacher, student_settings(), tmp_path / "half")
    assert not (tmp_path / "half").exists()


def test_variants_that_do_not_allow_the_use_are_rejected(made: Folders, teacher: Path, tmp_path: Path) -> None:
    augment(Augmentation.of(made[0], teacher, augment_settings(variants=0)), runtime_at(tmp_path), tmp_path / "shards")
    with pytest.raises(ShardMismatch, match=r"holds no variant; set augment.variants above 0, or variant_policy: none for"):
        distill("half", made[0], tmp_path / "shards", teacher, student_settings(), tmp_path / "half")
    assert not (tmp_path / "half").exists()


def test_labels_alone_teach_nothing_where_no_train_row_has_one(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    """A surrogate sees no variants, although the section distill has them rotate."""
    corpus = Path(shutil.copytree(prepared, tmp_path / "prepared"))
    table = pq.read_table(corpus / "train.parquet")
    without = pa.nulls(len(table), table.schema.field("label").type)
    pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", without), corpus / "train.parquet")
    soft_label(corpus, teacher, INFERENCE, runtime_at(tmp_path), tmp_path / "soft_labels")
    sources = Sources.open(ModelFolder(teacher), tmp_path / "soft_labels", None)
    with pytest.raises(PipelineError, match=r"half: no train row has a label, and the loss has no other term; set loss\."):
        train("half", sources, student_settings(loss={"labels": 1.0, "soft_labels": 0.0}), NO_CHECKPOINTS)


def test_float16_is_rejected_without_a_gpu(made: Folders, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="float16 needs a GPU; use precision: bfloat16 or float32"):
        distill("half", *made, teacher, student_settings({"precision": "float16"}), tmp_path / "half")


def test_an_unknown_service_is_rejected_by_name(made: Folders, teacher: Path, tmp_path: Path) -> None:
    runtime = runtime_at(tmp_path).model_copy(update={"report_to": ["nowhere"]})
    job = StudentJob("half", *made, teacher, student_settings())
    with pytest.raises(PipelineError, match=r"runtime.report_to names nowhere, which is not installed; installed are"):
        obtain(job, runtime, tmp_path / "half", tmp_path / "cost.json")


def in_other_units(teacher: Path, prepared: Path, scale: Scale, folder: Path) -> tuple[Path, Path]:
    """The same teacher and corpus, their values in another unit."""
    model = AutoModelForSequenceClassification.from_pretrained(teacher)
    scale.put_into(model)
    taught = Path(shutil.copytree(teacher, folder / "teacher"))
    model.save_pretrained(taught)
    copied = Path(shutil.copytree(prepared, folder / "copied"))
    for path in copied.glob("*.parquet"):
        table = pq.read_table(path)
        labels = pa.array(scale.mean + scale.deviation * table["label"].to_numpy(), pa.float32())
        pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", labels), path)
    return taught, copied


def logits(student: Path) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(student)
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([[2, 9, 10, 3], [2, 20, 30, 3], [2, 11, 12, 3], [2, 25, 6, 3]])).logits
    return logits[:, 0]


UNITS = {"plain": Scale(0.0, 1.0), "large": Scale(500.0, 200.0), "small": Scale(0.0, 1e-3)}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path, Path]]:
    """Soft labels, shards and teacher in each unit."""
    folder, task = tmp_path_factory.mktemp("units"), make_task("regression")
    teacher = save_teacher(folder / "teacher", task)
    prepared = save_prepared(folder / "prepared", task, {"train": 40, "dev": 10, "test": 10})
    found = {}
    for name, scale in UNITS.items():
        taught, copied = in_other_units(teacher, prepared, scale, folder / name)
        found[name] = (*make_shards(folder / name, copied, taught), taught)
    return found


@pytest.mark.parametrize(
    ("changed", "unit"),
    [
        ({"loss": {"labels": 0.5}}, "large"),
        ({"loss": {"labels": 0.5}}, "small"),
        ({"initial_weights": "random", "variant_policy": "none"}, "large"),
        ({"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}, "large"),
    ],
    ids=["all parts", "all parts, small", "random", "narrow"],
)
def test_what_a_student_of_a_regression_learns_does_not_depend_on_the_unit(
    changed: dict[str, Any], unit: str, sources: dict[str, tuple[Path, Path, Path]], tmp_path: Path
) -> None:
    found = {}
    for name in ("plain", unit):
        job = StudentJob("student", *sources[name], student_settings(**changed))
        obtain(job, runtime_at(tmp_path), tmp_path / name, tmp_path / f"{name}.json")
        found[name] = logits(tmp_path / name)
    scale = UNITS[unit]
    torch.testing.assert_close((found[unit] - scale.mean) / scale.deviation, found["plain"], rtol=1e-2, atol=2e-3)
    assert found["plain"].std() > 0.02
