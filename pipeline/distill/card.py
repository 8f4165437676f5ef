"""The model card of a student: what it is, what it was made from and how good it is on dev."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from pipeline.corpus.task import Task
from pipeline.shards.manifest import Manifest

CARD = """---
{{ card_data }}
---

# {{ student }}: a distilled {{ kind }} model for the task {{ task }}

{{ output }} It was distilled from a fine-tuned teacher {{ how }}.

```python
from transformers import pipeline

classify = pipeline("text-classification", "path/to/this/folder")
classify({{ example }})
```

In training, inputs were truncated to {{ max_length }} tokens; pass `truncation=True` to do the same.

## Quality on dev

| | {{ metric }} |
|---|---|
| teacher | {{ "%.4f"|format(facts.teacher_dev) }} |
| this student (epoch {{ facts.best_epoch }}, the best) | {{ "%.4f"|format(facts.dev) }} |

The epoch was chosen on dev, so its figure is optimistic; test figures are in the report of the pipeline.

## Lineage

| | |
|---|---|
| teacher (sha256 of weights and configuration) | `{{ facts.teacher }}` |
| soft labels (sha256 of their manifest) | `{{ facts.soft_labels }}` |
| variants (sha256 of their manifest) | {{ "`%s`"|format(facts.shards) if facts.shards else "none" }} |
| first weights | {{ start }} |
{%- if variants %}
| recipes and search | {{ variants }} |
{%- endif %}

```json
{{ settings }}
```
"""


def write_card(folder: Path, task: Task, facts: dict[str, Any], soft_labels: Manifest, variants: Manifest | None) -> None:
    """Write ``README.md`` in the hub's format; ``facts`` is the student's lineage."""
    labels, search = ", ".join(f"`{label}`" for label in task.labels), _search(variants)
    adversarial = search is not None and search["gradient_from"] != "noise"
    card = ModelCard.from_template(
        ModelCardData(
            library_name="transformers",
            pipeline_tag="text-classification",
            tags=["knowledge-distillation", *(["adversarial-data-augmentation"] if adversarial else [])],
            metrics=[task.metric],
        ),
        template_str=CARD,
        student=facts["student"],
        task=task.name,
        kind=task.kind,
        metric=task.metric,
        output=f"It predicts one of {labels}." if labels else "It predicts a number.",
        how=_how(variants),
        example='{"text": "first text", "text_pair": "second text"}' if task.pair else '"a text"',
        max_length=soft_labels.key["max_length"],
        facts=facts,
        start=_start(facts["start"], facts["settings"]["initial_weights"]),
        variants=_made(variants),
        settings=json.dumps(facts["settings"], indent=2),
    )
    card.save(folder / "README.md")


def _start(start: dict[str, Any], asked: Any) -> str:
    """Where the first weights come from."""
    if "layers" not in start:
        return "random"
    counts = (("parameters_copied", "copied"), ("parameters_mapped", "mapped"), ("parameters_fresh", "fresh"))
    parts = ", ".join(f"{start[name]:,} {word}" for name, word in counts if start[name])
    layers, error = ", ".join(map(str, start["layers"])), f"{start['embedding_error']:.1%}"
    if start["initial_weights"] == "checkpoint":
        mapped = f"the teacher's embeddings map onto its own but for {error}"
        return f"layers {layers} of {asked['checkpoint']}; parameters {parts}; {mapped}"
    lost = f"; the map loses {error} of the embeddings' variance" if start["parameters_mapped"] else ""
    return f"teacher's layers {layers}; parameters {parts}{lost}"


def _search(variants: Manifest | None) -> dict[str, Any] | None:
    """How the stored perturbations were searched; None if there are none."""
    return variants.details["settings"]["perturbation"] if variants is not None and variants.perturbed else None


def _how(variants: Manifest | None) -> str:
    """What the student learns from besides clean inputs."""
    if variants is None:
        return "on clean inputs alone"
    search = _search(variants)
    if search is None:
        return "with variants of its inputs"
    kind = "random" if search["gradient_from"] == "noise" else "adversarial"
    return f"with {kind} perturbations of its word embeddings"


def _made(variants: Manifest | None) -> str | None:
    """Number, recipes and search of the variants."""
    if variants is None or variants.coding is None:
        return None
    made = f"{variants.variants} a text ({' · '.join(' + '.join(recipe) for recipe in variants.recipes)})"
    search, checkpoints = _search(variants), variants.details["checkpoints"]
    if search is None:
        return made
    source = f"{_count(checkpoints, 'checkpoint')} of a surrogate" if checkpoints else search["gradient_from"]
    return (
        f"{made}; gradient from {source}, {search['norm']} epsilon {variants.details['epsilon']:g}, "
        f"{_count(search['num_steps'], 'step')}, stored as {variants.coding.codec}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
