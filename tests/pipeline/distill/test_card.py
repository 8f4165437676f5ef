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
    "soft_labels": "aa" * 32,
    "shards": "bb" * 32,
    "dev": 0.71,
    "teacher_dev": 0.82,
    "best_epoch": 2,
    "start": {"initial_weights": "random"},
}


def manifest(*recipes: list[str], variants: int = 2, checkpoints: int = 0, gradient_from: str = "teacher") -> Manifest:
    search = augment_settings({"gradient_from": gradient_from}).model_dump(mode="json")
    details = {"recipes": list(recipes), "epsilon": 0.25, "checkpoints": checkpoints, "settings": search}
    return Manifest(
        format_version=FORMAT_VERSION,
        content="variants" if recipes else "soft_labels",
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
    loaded: ModelCard = ModelCard.load(folder / "README.md")
    return loaded


def tags(found: ModelCard) -> Any:
    data: Any = found.data
    return data.tags


def test_a_student_of_perturbed_variants_says_how_they_were_searched(tmp_path: Path) -> None:
    found = card(tmp_path, manifest(["mask", "perturb"], ["mix"]))
    assert "with adversarial perturbations" in found.text
    assert "2 a text (mask + perturb · mix); gradient from teacher, l2 epsilon 0.25, 1 step, stored as int8" in found.text
    assert "adversarial-data-augmentation" in tags(found)
    assert "bb" * 32 in found.text
    assert "surrogate" not in found.text
    assert "3 checkpoints of a surrogate" in card(tmp_path, manifest(["perturb"], checkpoints=3)).text


@pytest.mark.parametrize(("recipes", "variants"), [([["mask"]], 2), ([["mask"], ["perturb"]], 1), (None, 0)])
def test_a_student_of_edited_variants_or_of_none_claims_no_perturbation(
    recipes: list[list[str]] | None, variants: int, tmp_path: Path
) -> None:
    """Also where a recipe perturbs that no variant has got to."""
    if recipes is None:
        found = card(tmp_path, None, shards=None, settings=settings(variant_policy="none"))
    else:
        found = card(tmp_path, manifest(*recipes, variants=variants))
        assert f"{variants} a text (mask)" in found.text
    prose = found.text.split("```json")[0]
    for word in ("adversarial", "perturb", "gradient", "epsilon", "int8"):
        assert word not in prose, word
    assert tags(found) == ["knowledge-distillation"]


def test_a_card_shows_the_settings(tmp_path: Path) -> None:
    shown = card(tmp_path, manifest(["mask"])).text.split("```json")[1].split("```")[0]
    assert json.loads(shown) == FACTS["settings"]


def test_perturbations_that_follow_no_gradient_are_not_called_adversarial(tmp_path: Path) -> None:
    found = card(tmp_path, manifest(["perturb"], gradient_from="noise"))
    assert "random perturbations" in found.text
    assert tags(found) == ["knowledge-distillation"]
