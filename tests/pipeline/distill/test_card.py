from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from pipeline.distill.card import write_card
from pipeline.shards.manifest import Coding, Manifest
from pipeline.shards.schema import FORMAT_VERSION
from tests.world import AUGMENT, make_task

FACTS: dict[str, Any] = {
    "student": "half",
    "settings": {"layers": 2},
    "teacher": "7d" * 32,
    "scores": "aa" * 32,
    "shards": "bb" * 32,
    "dev": 0.71,
    "teacher_dev": 0.82,
    "best_epoch": 2,
    "start": {"start": "scratch"},
}


def manifest(*recipes: list[str], variants: int = 2, snapshots: int = 0) -> Manifest:
    details = {"recipes": list(recipes), "radius": 0.25, "snapshots": snapshots, "settings": AUGMENT}
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


def card(folder: Path, variants: Manifest | None, **changed: Any) -> ModelCard:
    write_card(folder, make_task(), FACTS | changed, manifest(), variants)
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
    for word in ("adversarial", "perturb", "objective", "radius", "int8"):
        assert word not in found.text, word
    assert found.data.tags == ["knowledge-distillation"]


def test_a_control_learnt_from_untouched_inputs_alone(tmp_path: Path) -> None:
    found = card(tmp_path, None, shards=None)
    assert "on untouched inputs alone" in found.text
    assert "| variants (sha256 of their manifest) | none |" in found.text
    assert "what they are" not in found.text
