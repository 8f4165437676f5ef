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

{{ output }} It was distilled from a fine-tuned teacher on clean inputs
{%- if made %} and {{ made.variants }} variants of each{% endif %}.

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
| this student | {{ "%.4f"|format(facts.dev) }} |

Test figures are in the report of the pipeline.

## Lineage

| | |
|---|---|
| teacher (sha256 of weights and configuration) | `{{ facts.teacher }}` |
| soft labels (sha256 of their manifest) | `{{ facts.soft_labels }}` |
| variants (sha256 of their manifest) | {{ "`%s`"|format(facts.shards) if facts.shards else "none" }} |

Settings of the student, the origin of its initial weights (`embedding_error` is the share of the word embeddings' variance that
the map to a narrower width loses), and the variants:

```json
{{ details }}
```
"""


def write_card(folder: Path, task: Task, facts: dict[str, Any], soft_labels: Manifest, variants: Manifest | None) -> None:
    """Write ``README.md`` in the hub's format; ``facts`` is the student's lineage."""
    labels = ", ".join(f"`{label}`" for label in task.labels)
    made = None if variants is None else variants.details | {"variants": variants.variants, "recipes": variants.recipes}
    noise = made is not None and made["settings"]["perturbation"]["gradient_from"] == "noise"
    adversarial = variants is not None and variants.perturbed and not noise
    tags = ["knowledge-distillation", *(["adversarial-data-augmentation"] if adversarial else [])]
    card = ModelCard.from_template(
        ModelCardData(library_name="transformers", pipeline_tag="text-classification", tags=tags, metrics=[task.metric]),
        template_str=CARD,
        student=facts["student"],
        task=task.name,
        kind=task.kind,
        metric=task.metric,
        output=f"It predicts one of {labels}." if labels else "It predicts a number.",
        made=made,
        example='{"text": "first text", "text_pair": "second text"}' if task.pair else '"a text"',
        max_length=soft_labels.key["max_length"],
        facts=facts,
        details=json.dumps({"student": facts["settings"], "start": facts["start"], "variants": made}, indent=2),
    )
    card.save(folder / "README.md")
