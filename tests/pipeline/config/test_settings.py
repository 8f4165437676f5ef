from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config.settings import RuntimeSettings, SurrogateSettings
from tests.world import RUNTIME, STUDENT, student_settings


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"initial_weights": "random"}, "perturbations do not fit random embeddings; set variant_policy: none or"),
        ({"variant_policy": "none", "loss": {"soft_labels": 0.0}}, "without variants loss.labels or loss.soft_labels must be"),
        ({"initial_weights": {"checkpoint": 3}}, "checkpoint"),
        ({"depth": 0.5, "num_hidden_layers": 2}, "set only one of depth, num_hidden_layers and teacher_layers"),
        ({"width": 0.5, "hidden_size": 16}, "set either width, or hidden_size with num_attention_heads and intermediate_size"),
    ],
)
def test_a_student_that_cannot_be_trained_is_rejected_with_the_reason(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        student_settings(**changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"initial_weights": "random", "variant_policy": "none"}, "do not fit random ones; set initial_weights: teacher"),
        ({"loss": STUDENT["loss"] | {"soft_labels": 0.0}}, "a surrogate trains on clean inputs, so loss.labels or"),
        (
            {"depth": 0.5, "num_hidden_layers": None, "sizes": [{"width": 0.5}]},
            "give its size either in sizes, or depth, width",
        ),
    ],
)
def test_a_surrogate_that_cannot_be_trained_is_rejected_with_the_reason(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        SurrogateSettings.model_validate(STUDENT | {"checkpoints": 2} | changes)


def test_there_is_one_surrogate_of_each_size_or_of_the_sections_own() -> None:
    shared = STUDENT | {"checkpoints": 2}
    (own,) = SurrogateSettings.model_validate(shared | {"num_hidden_layers": 2}).each()
    assert (own.num_hidden_layers, own.sizes) == (2, [])
    sizes = [{"depth": 0.5}, {"num_hidden_layers": 1, "width": 0.5}]
    one, other = SurrogateSettings.model_validate(shared | {"num_hidden_layers": None, "sizes": sizes}).each()
    assert (one.depth, one.width, one.sizes) == (0.5, None, [])
    assert (other.depth, other.num_hidden_layers, other.width) == (None, 1, 0.5)
    assert one.training == other.training == own.training


@pytest.mark.parametrize(
    "error",
    [
        {"workers": -1}, {"max_bytes": 0}, {"world_size": 0}, {"report_to": "dvclive"},
        {"store": "ftp://host/store"}, {"store": "s3://key:secret@bucket/store"}, {"cache_bytes": 0},
    ],
)  # fmt: skip
def test_runtime_settings_out_of_range_are_rejected(error: dict[str, Any]) -> None:
    assert RuntimeSettings.model_validate(RUNTIME)
    with pytest.raises(ValueError, match=next(iter(error))):
        RuntimeSettings.model_validate(RUNTIME | error)
