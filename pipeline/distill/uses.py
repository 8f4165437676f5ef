"""Which of an example's stored variants a step shows. Knows numbers of variants, epochs and snapshots; no data."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config import Settings
from pipeline.errors import PipelineError
from pipeline.scouting import snapshot_for


class WorstOf(Settings):
    """So many candidates of each example are answered without gradient, and the one answered worst is learnt from.

    Follows the selection of Glitter (Kamalloo et al. 2022), over variants in place of a pool of texts.
    """

    worst_of: Annotated[int, Field(ge=2)]


Use = Literal["rotate", "by_progress", "all"] | WorstOf
"""One an epoch, in turn; that aimed at the scout's snapshot that was as far in its training; all; the worst of some."""


def check_use(use: Use, variants: int, snapshots: int) -> None:
    """Refuse a use that these variants do not allow; ``snapshots`` of the scout they are aimed at, 0 for none."""
    if not variants:
        raise PipelineError("there is no variant; set augment.variants above 0, or adversary: student or none")
    if isinstance(use, WorstOf) and use.worst_of > variants:
        raise PipelineError(f"variants: worst_of: {use.worst_of} is asked for, but the shards hold {variants} variants")
    if use == "by_progress" and not snapshots:
        raise PipelineError(
            "variants: by_progress needs variants that are aimed at a scout's snapshots; give the task aim: scout, or rotate"
        )


def chosen(use: Use, variants: int, snapshots: int, epoch: int, progress: float) -> list[int]:
    """The numbers, from 1, of the variants that a step shows of each of its examples.

    Args:
        use: how variants are used.
        variants: how many there are.
        snapshots: of the scout that they are aimed at; 0 for none.
        epoch: counted from 0.
        progress: share of the training that lies before the step.
    """
    everyone = list(range(1, variants + 1))
    if use == "all":
        return everyone
    if isinstance(use, WorstOf):
        return [everyone[(epoch * use.worst_of + number) % variants] for number in range(use.worst_of)]
    if use == "by_progress":
        away = [abs(snapshot_for(number, snapshots) - progress * snapshots) for number in everyone]
        everyone = [number for number, distance in zip(everyone, away, strict=True) if distance == min(away)]
    return [everyone[epoch % len(everyone)]]
