from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig

from pipeline.distill.narrowing import NARROWABLE, Narrowing, head_positions, spread
from pipeline.distill.student import SizeSettings, make_student

COMMON: dict[str, Any] = {"vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
WITH_TYPES = COMMON | {"intermediate_size": 64, "max_position_embeddings": 24}


def test_positions_are_spread_evenly_and_heads_stay_whole() -> None:
    assert spread(3, 6).tolist() == [0, 2, 4]
    assert head_positions(2, 4, 3).tolist() == [0, 1, 2, 6, 7, 8]


def test_a_narrowed_layer_acts_on_the_stream_as_the_wide_one_does() -> None:
    """For a stream inside the map's span, kept queries are what they were and outputs are mapped."""
    stream, _ = torch.linalg.qr(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
    narrowing = Narrowing(stream, head_positions(1, 2, 4), spread(6, 12))
    inside = torch.randn(5, 4) @ stream.T
    query, output = torch.randn(8, 8), torch.randn(8, 8)
    narrow_query = narrowing.parameter("x.attention.self.query.weight", query)
    narrow_output = narrowing.parameter("x.attention.output.dense.weight", output)
    assert narrow_query is not None
    assert narrow_output is not None
    assert torch.allclose((inside @ stream) @ narrow_query.T, (inside @ query.T)[:, :4], atol=1e-5)
    one_head = torch.cat([torch.randn(5, 4), torch.zeros(5, 4)], dim=1)
    assert torch.allclose(one_head[:, :4] @ narrow_output.T, (one_head @ output.T) @ stream, atol=1e-5)


FRESH_AT_MOST: list[tuple[str, dict[str, Any], float]] = [
    ("bert", WITH_TYPES, 0.0),
    ("distilbert", COMMON | {"hidden_dim": 64, "max_position_embeddings": 24}, 0.0),
    ("roberta", WITH_TYPES, 0.0),
    ("xlm-roberta", WITH_TYPES, 0.0),
    ("mpnet", WITH_TYPES, 0.05),
    ("deberta-v2", WITH_TYPES | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, 0.0),
    ("electra", WITH_TYPES | {"embedding_size": 16}, 1.0),
    ("albert", WITH_TYPES | {"embedding_size": 16}, 1.0),
    ("modernbert", WITH_TYPES | {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}, 0.8),
]


def test_every_narrowable_type_is_tried_here() -> None:
    assert sorted(kind for kind, _, _ in FRESH_AT_MOST) == sorted(NARROWABLE)


@pytest.mark.parametrize(("kind", "changes", "fresh_at_most"), FRESH_AT_MOST)
def test_every_narrowable_type_can_be_made_narrower(
    kind: str, changes: dict[str, Any], fresh_at_most: float, tmp_path: Path
) -> None:
    config: PreTrainedConfig = AutoConfig.for_model(kind, num_labels=2, **changes)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    student = make_student(tmp_path, SizeSettings(start="teacher", layers=1, hidden=16, heads=2, intermediate=32), seed=0)
    batch = {"input_ids": torch.tensor([[1, 5, 7, 2]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    assert student.model.eval()(**batch).logits.isfinite().all()
    total = sum(student.facts[name] for name in ("parameters_copied", "parameters_mapped", "parameters_fresh"))
    assert student.facts["parameters_fresh"] <= fresh_at_most * total
    assert student.fresh_share() == student.facts["parameters_fresh"] / total
