import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from pipeline.corpus.task import Task
from pipeline.distill.card import write_card
from pipeline.shards.manifest import Coding, Manifest
from pipeline.shards.schema import FORMAT_VERSION
from tests.world import AUGMENT, make_task, student_settings


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
    found = card(tmp_path, None, shards=None, settings=settings(variants="none"))
    assert "on untouched inputs alone" in found.text
    assert "perturb" not in found.text
    assert found.data.tags == ["knowledge-distillation"]
    assert "| variants (sha256 of their manifest) | none |" in found.text
    assert "what they are" not in found.text


@pytest.mark.parametrize("variants", ["none", "all"])
def test_a_card_shows_the_settings_that_had_an_effect(variants: str, tmp_path: Path) -> None:
    chosen = settings(variants=variants)
    found = card(tmp_path, None if variants == "none" else manifest(["mask"]), settings=chosen).text
    shown = json.loads(found.split("```json")[1].split("```")[0])
    assert ("perturbed" in shown["objective"]) == (variants == "all")
    assert (shown["variants"], shown["layers"]) == (variants, chosen["layers"])


def test_perturbations_that_follow_no_gradient_are_not_called_adversarial(tmp_path: Path) -> None:
    found = card(tmp_path, manifest(["perturb"], objective="noise"))
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
