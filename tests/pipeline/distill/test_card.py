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


@pytest.mark.parametrize(
    ("recipes", "gradient_from", "adversarial"),
    [
        ([["mask", "perturb"], ["swap"]], "teacher", True),
        ([["perturb"]], "noise", False),
        ([["mask"]], "teacher", False),
        ([["mask"], ["mask"], ["perturb"]], "teacher", False),
    ],
    ids=["perturbed", "noise", "edited", "no variant has got to perturb"],
)
def test_only_a_student_of_searched_perturbations_is_called_adversarial(
    recipes: list[list[str]], gradient_from: str, adversarial: bool, tmp_path: Path
) -> None:
    found = card(tmp_path, manifest(*recipes, gradient_from=gradient_from))
    assert "on clean inputs and 2 variants of each." in found.text
    assert "bb" * 32 in found.text
    assert tags(found) == ["knowledge-distillation", *(["adversarial-data-augmentation"] if adversarial else [])]


def test_a_student_without_variants_says_so(tmp_path: Path) -> None:
    found = card(tmp_path, None, shards=None, settings=settings(variant_policy="none"))
    assert "on clean inputs." in found.text
    assert "| variants (sha256 of their manifest) | none |" in found.text
    assert tags(found) == ["knowledge-distillation"]


def test_a_card_shows_settings_initial_weights_and_variants(tmp_path: Path) -> None:
    shown = json.loads(card(tmp_path, manifest(["mask"])).text.split("```json")[1].split("```")[0])
    assert (shown["student"], shown["start"]) == (FACTS["settings"], FACTS["start"])
    assert (shown["variants"]["variants"], shown["variants"]["recipes"]) == (2, [["mask"]])
    assert shown["variants"]["settings"]["codec"] == "int8"
