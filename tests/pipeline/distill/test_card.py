import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from pipeline.corpus.task import Task
from pipeline.distill.card import write_card
from pipeline.shards.manifest import Coding, Manifest
from pipeline.shards.schema import FORMAT_VERSION
from tests.world import augment_settings, make_task, student_settings


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


def manifest(*recipes: list[str], variants: int = 2, snapshots: int = 0, objective: str = "divergence") -> Manifest:
    search = augment_settings({"objective": objective}).model_dump(mode="json")
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
    assert "with adversarial perturbations" in found.text
    assert "2 a text (mask + perturb · mix); objective divergence, l2 radius 0.25, 1 step, stored as int8" in found.text
    assert "adversarial-data-augmentation" in (found.data.tags or [])
    assert "bb" * 32 in found.text
    assert "scout" not in found.text
    assert "3 snapshots of a scout" in card(tmp_path, manifest(["perturb"], snapshots=3)).text


@pytest.mark.parametrize(("recipes", "variants"), [([["mask"]], 2), ([["mask"], ["perturb"]], 1), (None, 0)])
def test_a_student_of_edited_variants_or_of_none_claims_no_perturbation(
    recipes: list[list[str]] | None, variants: int, tmp_path: Path
) -> None:
    """Also where a recipe perturbs that no variant has got to."""
    if recipes is None:
        found = card(tmp_path, None, shards=None, settings=settings(variants="none"))
        assert "what they are" not in found.text
    else:
        found = card(tmp_path, manifest(*recipes, variants=variants))
        assert f"{variants} a text (mask)" in found.text
    prose = found.text.split("```json")[0]
    for word in ("adversarial", "perturb", "objective", "radius", "int8"):
        assert word not in prose, word
    assert found.data.tags == ["knowledge-distillation"]


@pytest.mark.parametrize("variants", ["none", "all"])
def test_a_card_shows_the_settings_that_had_an_effect(variants: str, tmp_path: Path) -> None:
    chosen = settings(variants=variants)
    found = card(tmp_path, None if variants == "none" else manifest(["mask"]), settings=chosen).text
    shown = json.loads(found.split("```json")[1].split("```")[0])
    assert ("perturbed" in shown["objective"]) == (variants == "all")
    assert (shown["variants"], shown["layers"]) == (variants, chosen["layers"])


def test_perturbations_that_follow_no_gradient_are_not_called_adversarial(tmp_path: Path) -> None:
    found = card(tmp_path, manifest(["perturb"], objective="noise"))
    assert "random perturbations" in found.text
    assert found.data.tags == ["knowledge-distillation"]
