import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers import pipeline as transformers_pipeline

from pipeline.augment.passes import augment, score
from pipeline.distill import training
from pipeline.distill.objective import distillation_loss
from pipeline.distill.student import make_student
from pipeline.distill.training import Collator, DistillRows, StudentLoss, StudentSettings, distill
from pipeline.encoding import Batch
from pipeline.errors import PipelineError
from pipeline.models import load_classifier, logits_from_embeddings, word_embeddings
from pipeline.shards.codec import CODECS, dequantise
from pipeline.shards.manifest import ShardMismatch, manifest_hash
from pipeline.shards.reader import Row, Shards, join
from pipeline.tasks import Split, Task
from tests.world import (
    AUGMENT_SETTINGS,
    SCORE_SETTINGS,
    augment_settings,
    make_shards,
    make_task,
    make_tokenizer,
    runtime_at,
    save_prepared,
    save_teacher,
)

Folders = tuple[Path, Path]
COUNTS: dict[Split, int] = {"train": 40, "dev": 10, "test": 10}
EDITS = {"mask": 0.5, "delete": 0.5, "swap": 0.5, "ngram": 3, "span": 0.5}


def settings(**changes: Any) -> StudentSettings:
    values: dict[str, Any] = {
        "start": "teacher",
        "layers": 2,
        "augmentation": "shards",
        "objective": {"hard": 0.0, "soft": 1.0, "perturbed": 1.0, "form": "kl", "temperature": 1.0},
        "optimiser": {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "warmup": 0.1, "weight_decay": 0.0, "seed": 3},
    }
    return StudentSettings.model_validate(values | changes)


def rows_of(scores: Path, shards: Path) -> tuple[DistillRows, Collator]:
    known, perturbations = Shards(scores), Shards(shards)
    rows = known.rows("train", 0)
    variants = [perturbations.rows("train", number) for number in range(1, perturbations.manifest.variants + 1)]
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
    decoded = dequantise(batch["variant_codes"], batch["variant_scales"])
    for number, (example, perturbed) in enumerate(pairs):
        assert perturbed is not None
        assert perturbed.delta is not None
        length = len(example.input_ids)
        codes = torch.from_numpy(np.array(CODECS["int8"].unpack(perturbed.delta, 32)))
        expected = dequantise(codes, torch.from_numpy(np.array(perturbed.delta_scale)))
        assert torch.equal(decoded[number, :length], expected)
        assert not decoded[number, length:].any()
        assert batch["input_ids"][number, :length].tolist() == example.input_ids.tolist()
        assert batch["variant_input_ids"][number, :length].tolist() == example.input_ids.tolist()
        assert batch["variant_logits"][number].tolist() == perturbed.perturbed_logits.tolist()  # type: ignore[union-attr]


RECIPES = [[["perturb"]], [["mask"]], [["mask", "perturb"]], [["mix"]], [["delete", "perturb"], ["mix"], ["swap"]]]
"""Alone, and in turn over the epochs."""


@pytest.fixture(scope="module", params=[False, True], ids=["single", "pair"])
def kin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A teacher of single texts or of pairs, and its scores."""
    folder, task = tmp_path_factory.mktemp("kin"), make_task(pair=request.param)
    teacher = save_teacher(folder / "teacher", task)
    score(save_prepared(folder / "prepared", task, COUNTS), teacher, SCORE_SETTINGS, runtime_at(folder), folder / "scores")
    return teacher, folder / "scores"


@dataclass
class Seen:
    """What a student is given, and what it is asked to imitate."""

    embeddings: list[torch.Tensor] = field(default_factory=list)
    perturbed: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Watches what reaches the student's embeddings and the loss."""
    watched = Seen()

    def logits(model: Any, batch: Any, embeddings: torch.Tensor) -> torch.Tensor:
        watched.embeddings.append(embeddings.detach())
        return logits_from_embeddings(model, batch, embeddings)

    def loss(*given: Any) -> torch.Tensor:
        watched.perturbed.append(given[3])
        return distillation_loss(*given)

    monkeypatch.setattr(training, "logits_from_embeddings", logits)
    monkeypatch.setattr(training, "distillation_loss", loss)
    return watched


def batches_of(kin: Folders, recipes: list[list[str]], folder: Path) -> list[tuple[list[Row], Batch]]:
    """One batch of every variant, and one whose rows are of all variants in turn."""
    teacher, scores = kin
    made = augment_settings(recipes=recipes, variants=len(recipes), text_edits=EDITS)
    augment(scores, teacher, None, made, runtime_at(folder), folder / "shards")
    rows, collate = rows_of(scores, folder / "shards")
    turns = [[turn] * len(rows) for turn in range(len(recipes))] + [list(range(len(rows)))]
    pairs = [[rows[position, epoch] for position, epoch in enumerate(turn)] for turn in turns]
    return [([variant for _, variant in of_batch if variant is not None], collate(of_batch)) for of_batch in pairs]


@pytest.mark.parametrize("recipes", RECIPES)
def test_a_student_that_is_the_teacher_answers_every_variant_as_it_was_labelled(
    kin: Folders, recipes: list[list[str]], tmp_path: Path, seen: Seen
) -> None:
    """Were one of ids, types, partner, share, δ or mask another than the teacher saw, an answer would be."""
    student = make_student(kin[0], settings(layers=None), seed=0)
    loss = StudentLoss(student, settings().objective, Task.read(kin[0]))
    for variants, batch in batches_of(kin, recipes, tmp_path):
        loss(student.model.eval(), batch)
        answered, wanted = seen.perturbed[-1]
        stored = np.stack([row.perturbed_logits for row in variants])  # type: ignore[misc]
        np.testing.assert_array_equal(wanted.numpy(), stored)
        np.testing.assert_allclose(answered.detach().numpy(), stored, atol=1e-5)
        untouched = np.stack([row.teacher_logits for row in variants])
        assert np.median(np.abs(stored - untouched).max(axis=1)) > 1e-3, "the variants are others than the untouched inputs"


@pytest.mark.parametrize("recipes", RECIPES)
def test_a_narrower_student_is_given_what_the_teacher_was_carried_over_by_the_map(
    kin: Folders, recipes: list[list[str]], tmp_path: Path, seen: Seen
) -> None:
    """map(λ E_T[ids] + (1 − λ) E_T[partner] + δ), computed here from the stored rows one by one."""
    narrow = settings(hidden=16, heads=2, intermediate=32)
    student, table = make_student(kin[0], narrow, seed=0), word_embeddings(load_classifier(kin[0]))
    loss = StudentLoss(student, narrow.objective, Task.read(kin[0]))
    assert student.map is not None
    for variants, batch in batches_of(kin, recipes, tmp_path):
        loss(student.model.eval(), batch)
        for row, given in zip(variants, seen.embeddings[-1], strict=True):
            words = table[torch.tensor(row.input_ids.tolist())]
            if row.partner_ids is not None and row.own_weight is not None:
                words = row.own_weight * words + (1 - row.own_weight) * table[torch.tensor(row.partner_ids.tolist())]
            if row.delta is not None:
                words = words + torch.tensor(CODECS["int8"].unpack(row.delta, 32) * row.delta_scale[:, None])  # type: ignore[index]
            torch.testing.assert_close(given[: len(words)], words @ student.map, atol=1e-5, rtol=1e-5)


def test_rows_without_a_perturbation_have_none_beside_rows_that_have_one(kin: Folders, tmp_path: Path) -> None:
    *_, (variants, batch) = batches_of(kin, [["perturb"], ["mask"], ["mix"]], tmp_path)
    delta = dequantise(batch["variant_codes"], batch["variant_scales"])
    assert [bool(moved.any()) for moved in delta] == [row.delta is not None for row in variants]
    shares = [1.0 if row.own_weight is None else row.own_weight for row in variants]
    assert batch["variant_own_weight"].tolist() == shares
    assert {row.variant for row in variants} == {1, 2, 3}


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
