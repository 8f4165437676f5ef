"""Former names of settings and their successors: an old params.yaml gets one list of the new names."""

from collections.abc import Iterator, Mapping
from typing import Any

REMOVED = "removed: "
"""Begins the successor of a setting that has none."""

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
    "variants": "variant_policy (by_progress is curriculum; worst_of was removed)",
    "perturbation": REMOVED + "variants come from the shards alone",
    "residual": REMOVED + "the embedding map is not trained",
    "objective": "loss",
    "objective.hard": "loss.labels",
    "objective.soft": "loss.soft_labels",
    "objective.perturbed": "loss.variants",
    "objective.hidden": REMOVED + "hidden states are not stored",
    "optimiser": "training",
} | {f"optimiser.{old}": f"training.{new}" for old, new in TRAINING.items()}

AUGMENT = {
    "perturbation": "perturbation",
    "keep_label": REMOVED + "the teacher labels every variant",
    "text_edits.ngram": REMOVED + "the edit ngram",
    "masked_lm.batch_rows": "inference.batch_size",
    "mixing": REMOVED + "the step mix",
    "batch_rows": "inference.batch_size",
    "precision": "inference.precision",
    "perturbation.objective": "perturbation.gradient_from",
    "perturbation.radius": "perturbation.epsilon",
    "perturbation.start": "perturbation.init",
    "perturbation.steps": "perturbation.num_steps",
    "perturbation.special_tokens": REMOVED + "special tokens are never perturbed",
}

TASK = {
    "aim": "perturbation.gradient_from, for one task tasks.<task>.perturbation.gradient_from",
    "words": "masked_lm.model and masked_lm.fine_tune",
} | {f"augment.{old}": new for old, new in AUGMENT.items()}

RUNTIME = {
    "trainers": "world_size",
    "readers": "dataloader_num_workers",
    "checkpoint_steps": "save_steps",
    "log_to": "report_to",
    "ray_address": REMOVED + "use RAY_ADDRESS in the environment",
}

NEW_SECTIONS = {"score": "inference", "words": "masked_lm", "scout": "surrogate"}

SETTINGS: Mapping[str, Mapping[str, str]] = {
    "score": {"batch_rows": "inference.batch_size", "hidden": REMOVED + "hidden states are not stored"},
    "words": {"masked": "masked_lm.mlm_probability", "rows": "masked_lm.max_rows"} | TRAINING,
    "scout": {"snapshots": "checkpoints"} | STUDENT,
    "teach": TRAINING,
    "augment": AUGMENT,
    "distill": STUDENT,
    "surrogate": STUDENT,
    "students.*": STUDENT,
    "tasks.*": TASK,
    "evaluate": {"batch_rows": REMOVED + "it is fixed", "timed_rounds": REMOVED + "it is fixed"},
    "runtime": RUNTIME,
}
"""By section; ``*`` is every entry of a section of names."""


def renamed_settings(params: Mapping[str, Any]) -> list[str]:
    """One sentence for each setting of ``params`` that has another name since the first edition."""
    found = []
    for pattern, settings in SETTINGS.items():
        section, _, each = pattern.partition(".")
        value = params.get(section)
        entries = [(section, value)]
        if each:
            entries = [(f"{section}.{name}", below) for name, below in value.items()] if isinstance(value, dict) else []
        for place, entry in entries:
            if section in NEW_SECTIONS and entry is not None:
                found.append(f"{place} is now {NEW_SECTIONS[section]}")
            names = set(_names(entry))
            for old in filter(names.__contains__, settings):
                verb = "was" if settings[old].startswith(REMOVED) else "is now"
                found.append(f"{place}.{old} {verb} {settings[old]}")
    return found


def _names(value: Any, above: str = "") -> Iterator[str]:
    """The dotted place of every setting below a value."""
    for name, below in value.items() if isinstance(value, dict) else ():
        yield f"{above}{name}"
        yield from _names(below, f"{above}{name}.")
