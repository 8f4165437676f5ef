import re

import pytest
from transformers import BartConfig, Gemma3Config, PreTrainedConfig, RobertaConfig, XLNetConfig

from pipeline.config.errors import PipelineError
from pipeline.models.architectures import SUPPORTED, refuse_unsupported
from tests.architectures import CONFIGURATIONS


def test_every_supported_type_is_tested() -> None:
    assert {config.model_type for config in CONFIGURATIONS.values()} == set(SUPPORTED)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BartConfig(), f"is a 'bart' model; perturbing word embeddings is supported for {', '.join(SUPPORTED)}"),
        (Gemma3Config(), "is a 'gemma3' model; "),
        (RobertaConfig(pad_token_id=None), "is a 'roberta' model whose config.json names no pad_token_id"),
        (XLNetConfig(summary_type="mean"), "summary_type 'mean'; only 'last' is supported"),
    ],
)
def test_a_configuration_that_cannot_be_run_from_embeddings_is_refused(config: PreTrainedConfig, reason: str) -> None:
    with pytest.raises(PipelineError, match=f"^org/name .*{re.escape(reason)}"):
        refuse_unsupported(config, "org/name")
