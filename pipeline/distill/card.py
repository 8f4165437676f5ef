"""The model card of a student: what it is, where it comes from and how good it is. Knows facts, computes none."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from pipeline.corpus.task import Task
from pipeline.distill.shares import effective
from pipeline.perturbation.search import CONTROLS
from pipeline.shards.manifest import Manifest

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
{%- if own %}
| perturbed by the student itself | {{ own }} |
{%- endif %}

```json
{{ settings }}
```
"""


def write_card(folder: Path, task: Task, facts: dict[str, Any], scores: Manifest, variants: Manifest | None) -> None:
    """Write ``README.md`` in the form that the hub reads."""
    words = ", ".join(f"`{label}`" for label in task.labels)
    own = facts["settings"]["perturbation"] if facts["settings"]["adversary"]["student"] else None
    searches = [search for search in (_stored_search(variants), own) if search]
    adversarial = any(search["objective"] not in CONTROLS for search in searches)
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
        answer=f"It answers one of {words}." if words else "It answers with a number.",
        how=_how(variants, own),
        example='{"text": "first text", "text_pair": "second text"}' if task.pair else '"a text"',
        max_length=scores.key["max_length"],
        facts=facts,
        start=_start(facts["start"], facts["settings"]["start"]),
        variants=_made(variants),
        own=_searched_by_itself(own, task) if own else None,
        settings=json.dumps(effective(facts["settings"]), indent=2),
    )
    card.save(folder / "README.md")


def _start(start: dict[str, Any], asked: Any) -> str:
    """Where the first weights come from; those of another model have a map for stored perturbations alone."""
    if "layers" not in start:
        return "random"
    counts = (("parameters_copied", "copied"), ("parameters_mapped", "mapped"), ("parameters_fresh", "fresh"))
    parts = ", ".join(f"{start[name]:,} {word}" for name, word in counts if start[name])
    layers, error = ", ".join(map(str, start["layers"])), f"{start['embedding_error']:.1%}"
    if start["start"] == "checkpoint":
        mapped = f"the teacher's embeddings map onto its own but for {error}"
        return f"layers {layers} of {asked['checkpoint']}; parameters {parts}; {mapped}"
    lost = f"; the map loses {error} of the embeddings' variance" if start["parameters_mapped"] else ""
    return f"teacher's layers {layers}; parameters {parts}{lost}"


def _how(variants: Manifest | None, own: Mapping[str, Any] | None) -> str:
    """By what the student learnt, besides untouched inputs."""
    stored, parts = _stored_search(variants), []
    if stored:
        parts.append(f"{_kind(stored)} of its word embeddings")
    elif variants is not None:
        parts.append("variants of its inputs")
    if own:
        parts.append(f"{_kind(own)} of the student's own word embeddings, found anew in each step")
    return f"with {' and '.join(parts)}" if parts else "on untouched inputs alone"


def _kind(search: Mapping[str, Any]) -> str:
    """What perturbations are to be called that were searched so; a control's are not adversarial."""
    return {"noise": "random perturbations", "none": "perturbations of no length"}.get(
        search["objective"], "adversarial perturbations"
    )


def _stored_search(variants: Manifest | None) -> dict[str, Any] | None:
    """How stored perturbations were searched, where there are any."""
    if variants is None or not variants.perturbed:
        return None
    search: dict[str, Any] = variants.details["settings"]["perturbation"]
    return search


def _made(manifest: Manifest | None) -> str | None:
    if manifest is None or manifest.coding is None:
        return None
    made = f"{manifest.variants} a text ({' · '.join(' + '.join(recipe) for recipe in manifest.recipes)})"
    search = _stored_search(manifest)
    if search is None:
        return made
    snapshots = manifest.details["snapshots"]
    aimed = f", aimed at {_count(snapshots, 'snapshot')} of a scout" if snapshots else ""
    return (
        f"{made}; objective {search['objective']}{aimed}, {search['norm']} radius "
        f"{manifest.details['radius']:g}, {_count(search['steps'], 'step')}, stored as {manifest.coding.codec}"
    )


def _searched_by_itself(search: Mapping[str, Any], task: Task) -> str:
    """Objective, norm, radius or the effect on the student that it follows, and steps."""
    radius = search["radius"]
    if isinstance(radius, Mapping):
        ((name, value),) = radius.items()
        unit = " nats" if task.kind == "classification" else ""
        effect = f"{value:.1%} of its answers flip" if name == "flips" else f"its output diverges by {value:g}{unit}"
        radius = f"such that {effect}"
    else:
        radius = f"{radius:g}"
    return f"objective {search['objective']}, {search['norm']} radius {radius}, {_count(search['steps'], 'step')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
