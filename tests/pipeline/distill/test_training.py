import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers import pipeline as transformers_pipeline

from pipeline.distill.student import make_student
from pipeline.distill.training import Collator, DistillRows, StudentLoss, StudentSettings, distill
from pipeline.errors import PipelineError
from pipeline.shards.codec import CODECS, dequantise
from pipeline.shards.manifest import ShardMismatch, manifest_hash
from pipeline.shards.reader import Shards, join
from pipeline.tasks import Split
from tests.world import AUGMENT_SETTINGS, make_shards, make_task, make_tokenizer, save_prepared, save_teacher

Folders = tuple[Path, Path]
COUNTS: dict[Split, int] = {"train": 40, "dev": 10, "test": 10}


def settings(**changes: Any) -> StudentSettings:
    values: dict[str, Any] = {
        "start": "teacher",
        "layers": 2,
        "augmentation": "shards",
        "objective": {"hard": 0.0, "soft": 1.0, "perturbed": 1.0, "form": "kl", "temperature": 1.0},
        "optimiser": {
            "epochs": 2,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "warmup": 0.1,
            "weight_decay": 0.0,
            "seed": 3,
        },
    }
    return StudentSettings.model_validate(values | changes)


def rows_of(scores: Path, shards: Path) -> tuple[DistillRows, Collator]:
    known, perturbations = Shards(scores), Shards(shards)
    rows = known.rows("train", 0)
    variants = [perturbations.rows("train", number) for number in (1, 2)]
    return DistillRows(rows, [(v, join(rows, v)) for v in variants]), Collator(known, perturbations)


def test_every_example_meets_its_own_variants_in_turn(made: Folders) -> None:
    rows, _ = rows_of(*made)
    for position in (0, 17, len(rows) - 1):
        for epoch in range(4):
            example, perturbed = rows[position, epoch]
            assert perturbed is not None
            assert perturbed.example_id == example.example_id
            assert perturbed.variant == 1 + epoch % 2


def test_a_batch_holds_the_decoded_perturbations_of_its_rows(made: Folders) -> None:
    rows, collate = rows_of(*made)
    pairs = [rows[position, 0] for position in (3, 9, 30)]
    batch = collate(pairs)
    decoded = dequantise(batch["codes"], batch["scales"])
    for number, (example, perturbed) in enumerate(pairs):
        assert perturbed is not None
        assert perturbed.delta is not None
        length = len(example.input_ids)
        codes = torch.from_numpy(np.array(CODECS["int8"].unpack(perturbed.delta, 32)))
        expected = dequantise(codes, torch.from_numpy(np.array(perturbed.delta_scale)))
        assert torch.equal(decoded[number, :length], expected)
        assert not decoded[number, length:].any()
        assert batch["input_ids"][number, :length].tolist() == example.input_ids.tolist()
        assert batch["perturbed_logits"][number].tolist() == perturbed.perturbed_logits.tolist()  # type: ignore[union-attr]


def test_the_teacher_as_student_has_no_loss_at_the_start(made: Folders, teacher: Path) -> None:
    """It sees the decoded δ that the teacher labelled: were one of ids, δ, mask or target another, the loss would not be 0."""
    rows, collate = rows_of(*made)
    student = make_student(teacher, settings(layers=None), seed=0)
    loss = StudentLoss(student, settings().objective, make_task())
    value, _ = loss(student.model.eval(), collate([rows[position, 1] for position in range(20)]))
    assert value.item() == pytest.approx(0.0, abs=1e-6)


def test_a_student_comes_to_answer_as_its_teacher(made: Folders, teacher: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"optimiser": settings().optimiser.model_dump() | {"epochs": 20}}
    distill("half", *made, teacher, settings(**changes), tmp_path / "half")
    losses = [float(line.split(",")[2]) for line in (tmp_path / "half" / "history.csv").read_text().splitlines()[1:]]
    assert len(losses) == 20
    assert min(losses) < losses[0] / 2


def test_a_student_is_a_plain_hugging_face_folder(made: Folders, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "half"
    facts = distill("half", *made, teacher, settings(), out)
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
        distill("half", *made, teacher, settings(), tmp_path / name)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_the_control_learns_without_variants(made: Folders, teacher: Path, tmp_path: Path) -> None:
    facts = distill("plain", made[0], tmp_path / "absent", teacher, settings(augmentation="none"), tmp_path / "plain")
    assert facts["shards"] is None


def test_perturbed_variants_change_what_is_learnt(made: Folders, teacher: Path, tmp_path: Path) -> None:
    for name in ("shards", "none"):
        distill(name, *made, teacher, settings(augmentation=name), tmp_path / name)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("shards", "none"))
    assert one != two


def test_the_corpus_is_not_needed(teacher: Path, tmp_path: Path) -> None:
    prepared = save_prepared(tmp_path / "prepared", make_task(), COUNTS)
    scores, shards = make_shards(tmp_path, prepared, teacher)
    shutil.rmtree(prepared)
    shutil.rmtree(tmp_path / "store")
    assert distill("half", scores, shards, teacher, settings(), tmp_path / "half")["student"] == "half"


@pytest.mark.parametrize(("kind", "pair"), [("classification", True), ("regression", False), ("regression", True)])
def test_pairs_and_regressions_go_all_the_way(kind: str, pair: bool, tmp_path: Path) -> None:
    task = make_task(kind, pair)
    teacher = save_teacher(tmp_path / "teacher", task)
    prepared = save_prepared(tmp_path / "prepared", task, COUNTS)
    scores, shards = make_shards(tmp_path, prepared, teacher)
    facts = distill("half", scores, shards, teacher, settings(), tmp_path / "half")
    assert -1.0 <= facts["dev"] <= 1.0
    assert facts["teacher_dev"] == pytest.approx(facts["teacher_dev"])


def changed_teacher(teacher: Path, out: Path, **config: Any) -> Path:
    shutil.copytree(teacher, out)
    held = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(held | config))
    return out


def test_shards_of_another_label_order_are_refused(made: Folders, teacher: Path, tmp_path: Path) -> None:
    swapped = changed_teacher(teacher, tmp_path / "swapped", id2label={"0": "good", "1": "bad"}, label2id={"good": 0, "bad": 1})
    with pytest.raises(ShardMismatch, match=r'labels: \["good", "bad"\] wanted, \["bad", "good"\] found.*dvc repro'):
        distill("half", *made, swapped, settings(), tmp_path / "half")


def test_shards_of_another_tokenizer_are_refused(made: Folders, teacher: Path, tmp_path: Path) -> None:
    other = shutil.copytree(teacher, tmp_path / "other")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(other)
    with pytest.raises(ShardMismatch, match=r"the scores in .* do not fit: tokenizer: \w+… wanted, \w+… found.*dvc repro"):
        distill("half", *made, other, settings(), tmp_path / "half")


def test_shards_of_another_teacher_are_refused(made: Folders, tmp_path: Path) -> None:
    other = save_teacher(tmp_path / "other", make_task(), seed=5)
    with pytest.raises(ShardMismatch, match=r"do not fit: teacher: \w+… wanted, \w+… found"):
        distill("half", *made, other, settings(), tmp_path / "half")


def test_perturbations_of_another_teacher_than_the_scores_are_refused(made: Folders, teacher: Path, tmp_path: Path) -> None:
    other = save_teacher(tmp_path / "other", make_task(), seed=5)
    prepared = save_prepared(tmp_path / "prepared", make_task(), COUNTS)
    _, shards = make_shards(tmp_path, prepared, other)
    with pytest.raises(ShardMismatch, match=r"the perturbations in .* do not fit: teacher"):
        distill("half", made[0], shards, teacher, settings(), tmp_path / "half")


def test_perturbations_of_other_scores_are_refused(made: Folders, teacher: Path, tmp_path: Path) -> None:
    prepared = save_prepared(tmp_path / "prepared", make_task(), COUNTS, seed=9)
    _, shards = make_shards(tmp_path, prepared, teacher)
    with pytest.raises(ShardMismatch, match=r"the perturbations in .* do not fit: scores: \w+… wanted, \w+… found.*dvc repro"):
        distill("half", made[0], shards, teacher, settings(), tmp_path / "half")


def test_another_format_version_is_refused(made: Folders, teacher: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(made[1], tmp_path / "shards")
    manifest = json.loads((shards / "manifest.json").read_text())
    (shards / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(
        ShardMismatch, match=r"format_version is 99, this version reads 1; make the shards again with dvc repro"
    ):
        distill("half", made[0], shards, teacher, settings(), tmp_path / "half")


def test_a_missing_shard_and_a_flipped_byte_are_named_together(made: Folders, teacher: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(made[1], tmp_path / "shards")
    gone, broken, *_ = sorted(shards.glob("*.arrow"))
    gone.unlink()
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 1
    broken.unlink()
    broken.write_bytes(content)
    with pytest.raises(ShardMismatch) as refusal:
        distill("half", made[0], shards, teacher, settings(), tmp_path / "half")
    assert f"{gone.name} is missing" in str(refusal.value)
    assert f"{broken.name} has other bytes than when it was written" in str(refusal.value)
    assert "dvc repro" in str(refusal.value)
    assert not (tmp_path / "half").exists()


def test_a_student_from_scratch_cannot_take_stored_perturbations(made: Folders, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"student new starts from scratch.*use start: teacher, or augmentation: none"):
        distill("new", *made, teacher, settings(start="scratch"), tmp_path / "new")


def test_no_variants_are_refused_where_they_are_wanted(prepared: Path, teacher: Path, tmp_path: Path) -> None:
    scores, shards = make_shards(tmp_path, prepared, teacher, AUGMENT_SETTINGS.model_copy(update={"variants": 0}))
    with pytest.raises(ShardMismatch, match=r"holds no variant; set augment.variants above 0"):
        distill("half", scores, shards, teacher, settings(), tmp_path / "half")
