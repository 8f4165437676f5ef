"""The model card of a student: what it is, where it comes from and how good it is. Knows facts, computes none."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from pipeline.shards.manifest import Manifest
from pipeline.tasks import Task

CARD = """---
{{ card_data }}
---

# {{ student }}: a distilled {{ kind }} model for the task {{ task }}

{{ answer }} It was distilled from a fine-tuned teacher {{ how }}.

```python
from transformers import pipeline

answer = pipeline("text-classification", "path/to/this/folder")
answer({{ example }})
```

Inputs longer than {{ max_length }} tokens were cut to that length in training; pass `truncation=True` to do the same.

## Quality on dev

| | {{ metric }} |
|---|---|
| teacher | {{ "%.4f"|format(facts.teacher_dev) }} |
| this student (epoch {{ facts.best_epoch }}, the best) | {{ "%.4f"|format(facts.dev) }} |

Dev chose the epoch, so the figure is a little too good; test figures stand in the report of the pipeline.

## Lineage

| | |
|---|---|
| teacher (sha256 of weights and configuration) | `{{ facts.teacher }}` |
| scores (sha256 of their manifest) | `{{ facts.scores }}` |
| variants (sha256 of their manifest) | {{ "`%s`"|format(facts.shards) if facts.shards else "none" }} |
| first weights | {{ start }} |
{%- if variants %}
| what they are | {{ variants }} |
{%- endif %}

```json
{{ settings }}
```
"""


def write_card(folder: Path, task: Task, facts: dict[str, Any], scores: Manifest, variants: Manifest | None) -> None:
    """Write ``README.md`` in the form that the hub reads."""
    words = ", ".join(f"`{label}`" for label in task.labels)
    card = ModelCard.from_template(
        ModelCardData(
            library_name="transformers",
            pipeline_tag="text-classification",
            tags=["knowledge-distillation", *(["adversarial-data-augmentation"] if variants and variants.perturbed else [])],
            metrics=[task.metric],
        ),
        template_str=CARD,
        student=facts["student"],
        task=task.name,
        kind=task.kind,
        metric=task.metric,
        answer=f"It answers one of {words}." if words else "It answers with a number.",
        how=_how(variants),
        example='{"text": "first text", "text_pair": "second text"}' if task.pair else '"a text"',
        max_length=scores.key["max_length"],
        facts=facts,
        start=_start(facts["start"]),
        variants=_made(variants),
        settings=json.dumps(facts["settings"], indent=2),
    )
    card.save(folder / "README.md")


def _start(start: dict[str, Any]) -> str:
    if start["start"] == "scratch":
        return "random"
    counts = (("parameters_copied", "copied"), ("parameters_mapped", "mapped"), ("parameters_fresh", "fresh"))
    parts = [f"{start[name]:,} {word}" for name, word in counts if start[name]]
    error = f"; the map loses {start['embedding_error']:.1%} of the embeddings' variance" if start["parameters_mapped"] else ""
    return f"teacher's layers {', '.join(map(str, start['layers']))}; parameters {', '.join(parts)}{error}"


def _how(variants: Manifest | None) -> str:
    if variants is None:
        return "on untouched inputs alone"
    return f"with {'adversarial perturbations of its word embeddings' if variants.perturbed else 'variants of its inputs'}"


def _made(manifest: Manifest | None) -> str | None:
    if manifest is None or manifest.coding is None:
        return None
    made = f"{manifest.variants} a text ({' · '.join(' + '.join(recipe) for recipe in manifest.recipes)})"
    if not manifest.perturbed:
        return made
    search = manifest.details["settings"]["perturbation"]
    snapshots = manifest.details["snapshots"]
    aimed = f", aimed at {_count(snapshots, 'snapshot')} of a scout" if snapshots else ""
    return (
        f"{made}; objective {search['objective']}{aimed}, {search['norm']} radius "
        f"{manifest.details['radius']:g}, {_count(search['steps'], 'step')}, stored as {manifest.coding.codec}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
