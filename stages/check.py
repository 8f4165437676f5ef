"""check: the whole of params.yaml, before any stage runs (no stage)."""

from pathlib import Path

import click

from pipeline.config.errors import PipelineErrors
from pipeline.config.sections import read_sections
from pipeline.models.folder import on_hub
from pipeline.models.forward import pick_device
from pipeline.models.precision import asking_for, note_slow_precision
from stages.command import RAW, params_option, stage
from stages.download import MODEL_FOLDER
from stages.validation import Models, contradictions


@stage
@params_option
def main(params: Path) -> None:
    """Validate params.yaml and list every error at once.

    Each stage validates what it reads; this validates everything before the first stage starts: unknown, missing, renamed and
    mistyped settings, contradictions, and whether the models on this machine (folders, hub cache) can do what is asked of them.
    Errors in tables, or in models that are not here yet, are found by the stage that reads them.
    """
    sections, errors = read_sections(params)
    models = Models(to_come=RAW / MODEL_FOLDER)
    errors += contradictions(sections, models)
    for model in models.missing(sections):
        name, revision = on_hub(model)
        fetch = f"hf download {name}" + (f" --revision {revision}" if revision else "")
        click.echo(f"note: {model} is not on this machine yet, so it is not checked; after `{fetch}` it is")
    note_slow_precision(params)
    if pick_device().type == "cpu" and (asking := asking_for("float16", params)):
        click.echo(f"note: {', '.join(asking)}: float16 needs a GPU, and this machine has none; bfloat16 and float32 need none")
    if errors:
        raise PipelineErrors(str(params), list(dict.fromkeys(errors)))
    click.echo(f"{params}: tasks {', '.join(sections.tasks)}; students {', '.join(sections.students)}")


if __name__ == "__main__":
    main()
