import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from pipeline.corpus.task import Task
from pipeline.distill.card import write_card
from pipeline.shards.manifest import Coding, Manifest
from pipeline.shards.schema import FORMAT_VERSION
from tests.world import AUGMENT, STUDENT, make_task, student_settings


def settings(**changed: Any) -> dict[str, Any]:
    """A student's settings as its lineage has them."""
    return student_settings(**changed).model_dump(mode="json", exclude_none=True)


FACTS: dict[str, Any] = {
    "student": "half",
    "settings": settings(),
    "teacher": "7d" * 32,
    "scores": "aa" * 32,
    "shards": "bb" * 32,
    "dev": 0.71,
    "teacher_dev": 0.82,
    "best_epoch": 2,
    "start": {"start": "scratch"},
}


START = {"layers": [0, 2], "parameters_copied": 1200, "parameters_mapped": 30, "parameters_fresh": 0, "embedding_error": 0.032}


def manifest(*recipes: list[str], variants: int = 2, snapshots: int = 0, objective: str = "divergence") -> Manifest:
    search = AUGMENT | {"perturbation": AUGMENT["perturbation"] | {"objective": objective}}
    details = {"recipes": list(recipes), "radius": 0.25, "snapshots": snapshots, "settings": search}
    return Manifest(
        format_version=FORMAT_VERSION,
        content="perturbations" if recipes else "scores",
        task=make_task(),
        key={"max_length": 24},
        token_types=True,
        pad_token_id=0,
        coding=Coding(codec="int8", width=32) if recipes else None,
        variants=variants if recipes else 0,
        details=details if recipes else {},
        shards=(),
    )


def card(folder: Path, variants: Manifest | None, task: Task | None = None, **changed: Any) -> ModelCard:
    write_card(folder, task or make_task(), FACTS | changed, manifest(), variants)
    return ModelCard.load(folder / "README.md")


def test_a_student_of_perturbed_variants_says_how_they_were_searched(tmp_path: Path) -> None:
    found = card(tmp_path, manifest(["mask", "perturb"], ["mix"]))
    assert "with adversarial perturbations of its word embeddings" in found.text
    assert "2 a text (mask + perturb · mix); objective divergence, l2 radius 0.25, 1 step, stored as int8" in found.text
    assert "adversarial-data-augmentation" in (found.data.tags or [])
    assert "bb" * 32 in found.text


def test_a_scout_is_spoken_of_only_where_there_was_one(tmp_path: Path) -> None:
    assert "aimed at 3 snapshots of a scout" in card(tmp_path, manifest(["perturb"], snapshots=3)).text
    assert "scout" not in card(tmp_path, manifest(["perturb"])).text


@pytest.mark.parametrize(("recipes", "variants"), [([["mask"]], 2), ([["mask"], ["perturb"]], 1)])
def test_a_student_of_edited_variants_claims_no_perturbation(recipes: list[list[str]], variants: int, tmp_path: Path) -> None:
    """Also where a recipe perturbs that no variant has got to."""
    found = card(tmp_path, manifest(*recipes, variants=variants))
    assert f"| what they are | {variants} a text (mask) |" in found.text
    prose = found.text.split("```json")[0]
    for word in ("adversarial", "perturb", "objective", "radius", "int8"):
        assert word not in prose, word
    assert found.data.tags == ["knowledge-distillation"]


def test_a_control_learnt_from_untouched_inputs_alone(tmp_path: Path) -> None:
    found = card(tmp_path, None, shards=None, settings=settings(adversary="none"))
    assert "on untouched inputs alone" in found.text
    assert "perturb" not in found.text
    assert found.data.tags == ["knowledge-distillation"]
    assert "| variants (sha256 of their manifest) | none |" in found.text
    assert "what they are" not in found.text


@pytest.mark.parametrize(
    ("changed", "kind", "said"),
    [
        ({}, "classification", "objective divergence, l2 radius 0.1, 1 step"),
        ({"norm": "linf", "steps": 3}, "classification", "objective divergence, linf radius 0.1, 3 steps"),
        (
            {"radius": {"flips": 0.05}},
            "classification",
            "l2 radius such that 5.0% of its answers flip, 1 step",
        ),
        ({"radius": {"divergence": 0.1}}, "classification", "l2 radius such that its output diverges by 0.1 nats, 1 step"),
        ({"radius": {"divergence": 0.1}}, "regression", "l2 radius such that its output diverges by 0.1, 1 step"),
    ],
)
def test_a_student_that_perturbed_its_own_inputs_says_how(
    changed: dict[str, Any], kind: str, said: str, tmp_path: Path
) -> None:
    search = STUDENT["perturbation"] | changed
    chosen = settings(adversary="student", perturbation=search)
    found = card(tmp_path, None, make_task(kind), shards=None, settings=chosen)
    how = "with adversarial perturbations of the student's own word embeddings, found anew in each step."
    assert f"distilled from a fine-tuned teacher {how}" in found.text
    assert re.search(rf"^\| perturbed by the student itself \| [^|]*{re.escape(said)} \|$", found.text, re.M)
    assert found.data.tags == ["knowledge-distillation", "adversarial-data-augmentation"]
    assert "what they are" not in found.text


@pytest.mark.parametrize(
    ("adversary", "idle"), [("shards", {"perturbation"}), ("student", {"variants"}), ("none", {"perturbation", "variants"})]
)
def test_a_card_shows_no_setting_that_did_nothing(adversary: str, idle: set[str], tmp_path: Path) -> None:
    chosen = settings(adversary=adversary)
    found = card(tmp_path, manifest(["mask"]) if adversary == "shards" else None, settings=chosen).text
    shown = json.loads(found.split("```json")[1].split("```")[0])
    assert {"perturbation", "variants"} - set(shown) == idle
    assert shown["layers"] == chosen["layers"]


def test_a_student_of_both_says_both(tmp_path: Path) -> None:
    found = card(tmp_path, manifest(["perturb"]), settings=settings(adversary={"shards": 0.5, "student": 0.5}))
    stored, own = "adversarial perturbations of its word embeddings", "adversarial perturbations of the student's own"
    assert f"teacher with {stored} and {own}" in found.text
    assert "| what they are | 2 a text (perturb); objective divergence" in found.text
    assert "| perturbed by the student itself | objective divergence" in found.text


@pytest.mark.parametrize("who", ["shards", "student"])
def test_perturbations_that_follow_no_gradient_are_not_called_adversarial(who: str, tmp_path: Path) -> None:
    search = STUDENT["perturbation"] | {"objective": "noise", "start": 1.0}
    stored = manifest(["perturb"], objective="noise") if who == "shards" else None
    found = card(tmp_path, stored, settings=settings(adversary=who, perturbation=search))
    assert "teacher with random perturbations of " in found.text
    assert found.data.tags == ["knowledge-distillation"]


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ({"start": "scratch"}, "random"),
        (
            START | {"start": "teacher"},
            "teacher's layers 0, 2; parameters 1,200 copied, 30 mapped; the map loses 3.2% of the embeddings' variance",
        ),
        (START | {"start": "teacher", "parameters_mapped": 0}, "teacher's layers 0, 2; parameters 1,200 copied"),
        (
            START | {"start": "checkpoint", "parameters_mapped": 0},
            "layers 0, 2 of data/raw/small; parameters 1,200 copied; the teacher's embeddings map onto its own but for 3.2%",
        ),
    ],
)
def test_the_first_weights_are_said_to_be_whose_they_were(start: dict[str, Any], said: str, tmp_path: Path) -> None:
    asked = settings(**({"start": {"checkpoint": "data/raw/small"}} if start["start"] == "checkpoint" else {}))
    assert f"| first weights | {said} |" in card(tmp_path, None, start=start, settings=asked).text
