import math
from pathlib import Path

import pytest
from transformers import (
    BartConfig,
    FunnelConfig,
    Gemma3Config,
    PreTrainedConfig,
    XLNetConfig,
)

from pipeline.config.errors import PipelineError
from pipeline.models.architectures import SUPPORTED, positions_of
from pipeline.models.loading import load_classifier
from tests.architectures import CONFIGURATIONS


def test_every_supported_type_is_tried_here() -> None:
    assert {config.model_type for config in CONFIGURATIONS.values()} == set(SUPPORTED)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("bart", BartConfig()),
        ("gemma3", Gemma3Config()),
    ],
)
def test_an_unsupported_type_is_refused_by_name(kind: str, config: PreTrainedConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(PipelineError) as refusal:
        load_classifier(tmp_path)
    assert str(refusal.value) == (
        f"{tmp_path} is a {kind!r} model; perturbing word embeddings is supported for {', '.join(SUPPORTED)}"
    )


def test_an_xlnet_that_summarises_over_padding_is_refused(tmp_path: Path) -> None:
    XLNetConfig(summary_type="mean").save_pretrained(tmp_path)
    with pytest.raises(PipelineError, match="XLNet with summary_type 'mean'; only 'last' is supported"):
        load_classifier(tmp_path)


def test_relative_positions_and_none_at_all_have_no_end() -> None:
    assert positions_of(XLNetConfig()) == positions_of(FunnelConfig()) == math.inf
