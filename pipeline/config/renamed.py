"""Setting names of the first edition and their successors: an old params.yaml is answered with one list of new names."""

from collections.abc import Iterator, Mapping
from typing import Any

REMOVED = "removed: "
"""Begins what is said of a setting without a successor."""

TRAINING = {
    "epochs": "num_train_epochs",
    "accumulation": "gradient_accumulation_steps",
    "schedule": "lr_scheduler_type",
    "warmup": "warmup_ratio",
    "clip": "max_grad_norm",
}

STUDENT = {
    "start": "initial_weights",
    "layers": "num_hidden_layers, or depth as a share of the teacher's; a list of layers is teacher_layers",
    "hidden": "hidden_size, or width as a share of the teacher's",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "adversary": "variant_policy; none is a student without variants, and control_of: <student> a control",
    "variants": "variant_policy (by_progress is curriculum)",
    "perturbation": REMOVED + "variants come from the shards alone",
    "residual": REMOVED + "the embedding map is not trained",
    "objective": "loss",
    "objective.hard": "loss.labels",
    "objective.soft": "loss.soft_labels",
    "objective.perturbed": "loss.variants",
    "objective.hidden": REMOVED + "hidden states are not stored",
    "optimiser": "training",
} | {f"optimiser.{old}": f"training.{new}" for old, new in TRAINING.items()}

PERTURBATION = {
    "perturbation.objective": "perturbation.gradient_from",
    "perturbation.radius": "perturbation.epsilon",
    "perturbation.start": "perturbation.init",
    "perturbation.steps": "perturbation.num_steps",
    "perturbation.special_tokens": REMOVED + "special tokens are never perturbed",
}

AUGMENT = {
    "perturbation": "perturbation",
    "keep_label": REMOVED + "the teacher labels every variant",
    "text_edits.ngram": REMOVED + "the edit ngram",
    "masked_lm.batch_rows": "inference.batch_size",
    "mixing": "augment.mix_alpha",
    "batch_rows": "inference.batch_size",
    "precision": "inference.precision",
} | PERTURBATION

SECTIONS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "score": ("inference", {"batch_rows": "inference.batch_size", "hidden": REMOVED + "hidden states are not stored"}),
    "words": ("masked_lm", {"masked": "masked_lm.mlm_probability", "rows": "masked_lm.max_rows"} | TRAINING),
    "scout": ("surrogate", {"snapshots": "checkpoints"} | STUDENT),
    "teach": ("", TRAINING),
    "augment": ("", AUGMENT),
    "distill": ("", STUDENT),
    "surrogate": ("", STUDENT),
    "students.*": ("", STUDENT),
    "tasks.*": (
        "",
        {
            "aim": "perturbation.gradient_from, for one task tasks.<task>.perturbation.gradient_from",
            "words": "masked_lm.model and masked_lm.fine_tune",
        }
        | {f"augment.{old}": new for old, new in AUGMENT.items()},
    ),
    "evaluate": ("", {"batch_rows": REMOVED + "it is fixed", "timed_rounds": REMOVED + "it is fixed"}),
    "runtime": (
        "",
        {
            "trainers": "world_size",
            "readers": "dataloader_num_workers",
            "checkpoint_steps": "save_steps",
            "log_to": "report_to",
        },
    ),
}
"""By section: its new name where it has one, and its settings."""


def renamed_settings(params: Mapping[str, Any]) -> list[str]:
    """One sentence for each setting of ``params`` that the first edition knew by another name."""
    found = []
    for section, (successor, settings) in SECTIONS.items():
        for place, value in _entries(params, section):
            if successor:
                found.append(f"{place} is now {successor}")
            names = {name for name, _ in _nodes(value)}
            found += [_sentence(f"{place}.{old}", new) for old, new in settings.items() if old in names]
    return found


def _sentence(place: str, successor: str) -> str:
    return f"{place} was {successor}" if successor.startswith(REMOVED) else f"{place} is now {successor}"


def _entries(params: Mapping[str, Any], section: str) -> Iterator[tuple[str, Any]]:
    """The section, or every entry of a section of names, with its place."""
    name, _, each = section.partition(".")
    value = params.get(name)
    if value is not None and not each:
        yield name, value
    elif isinstance(value, dict):
        yield from ((f"{name}.{entry}", below) for entry, below in value.items())


def _nodes(value: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting below a value with its dotted place, outer ones first."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield f"{above}{name}", below
            yield from _nodes(below, f"{above}{name}.")
