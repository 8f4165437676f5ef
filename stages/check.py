"""check: the whole of params.yaml read before any stage runs."""

from pathlib import Path

import click

from pipeline.checking.sections import Sections, read_sections
from pipeline.checking.uses import Models, use_errors
from pipeline.config.errors import Faults
from pipeline.config.params import Places, existing
from pipeline.models.folder import on_hub
from pipeline.models.forward import pick_device
from pipeline.models.precision import asking_for, note_slow_precision
from stages.command import RAW, params_option, stage
from stages.download import MODEL_FOLDER


@stage
@params_option
def main(params: Path) -> None:
    """Read all of params.yaml and list every fault of it at once.

    Each stage checks what it reads; this checks everything before the first stage starts: unknown, missing and mistyped
    settings, what contradicts itself, and what is asked of a model that is on this machine, in a folder or in the hub's cache.
    What depends on a table, or on a model that is not there yet, is found by the stage that reads it.
    """
    sections, faults = read_sections(params)
    models = Models(to_come=RAW / MODEL_FOLDER)
    faults += use_errors(sections, models)
    for model in models.missing(sections):
        name, revision = on_hub(model)
        fetch = f"hf download {name}" + (f" --revision {revision}" if revision else "")
        click.echo(f"note: {model} is not on this machine yet, so it is not checked; after `{fetch}` it is")
    computed = _computed(params, sections)
    note_slow_precision(params, *computed)
    if pick_device().type == "cpu" and (asking := asking_for("float16", params, *computed)):
        click.echo(f"note: {', '.join(asking)}: float16 needs a GPU, and this machine has none; bfloat16 and float32 need none")
    if faults:
        raise Faults(str(params), list(dict.fromkeys(faults)))
    click.echo(f"{params}: tasks {', '.join(sections.tasks)}; students {', '.join(sections.students)}")


def _computed(params: Path, sections: Sections) -> list[str | Places]:
    """The sections, with those over them, by which stages compute; a model that is adopted is not fitted."""
    tasks = sections.tasks.values()
    computed: list[str | Places] = ["score"]
    computed += ["teach"] if any(task.teacher.fine_tune for task in tasks) else []
    computed += ["words"] if any(task.words and task.words.fit for task in tasks) else []
    computed += [existing(params, "augment", f"tasks.{task}.augment") for task in sections.variants]
    computed += [("distill", "scout")] if any(task.aim == "scout" for task in tasks) else []
    return computed + [("distill", f"students.{name}") for name in sections.students]


if __name__ == "__main__":
    main()
