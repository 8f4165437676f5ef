"""Which of an example's stored variants a step shows. Knows what variants are aimed at, epochs and progress; no data."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.errors import PipelineError
from pipeline.config.params import Settings
from pipeline.perturbation.surrogate import Aims, aims_of
from pipeline.shards.manifest import Manifest


class WorstOf(Settings):
    """So many candidates of each example are answered without gradient, and the one answered worst is learnt from.

    Follows the selection of Glitter (Kamalloo et al. 2022), over variants in place of a pool of texts.
    """

    worst_of: Annotated[int, Field(ge=2)]


Use = Literal["rotate", "by_progress", "all"] | WorstOf
"""One an epoch, in turn; that aimed at the scout's snapshot that was as far in its training, or in turn where none is aimed at
any; all; the worst of some."""


def aims_in(manifest: Manifest) -> Aims:
    """At which snapshot of the scout each variant of a set is aimed."""
    recipes = manifest.recipes
    perturbed = ("perturb" in recipes[number % len(recipes)] for number in range(manifest.variants))
    return aims_of(perturbed, snapshots_of(manifest))


def snapshots_of(manifest: Manifest) -> int:
    """How many snapshots the scout has; 0 where there is none."""
    return int(manifest.details["snapshots"])


def check_use(use: Use, aims: Aims, snapshots: int) -> None:
    """Refuse a use that the variants with these aims at a scout's snapshots, 0 where there is none, do not allow."""
    variants = len(aims)
    if not variants:
        raise PipelineError("there is no variant; set augment.variants above 0, or adversary: student or none")
    if isinstance(use, WorstOf) and use.worst_of > variants:
        raise PipelineError(f"variants: worst_of: {use.worst_of} is asked for, but the shards hold {variants} variants")
    if use == "by_progress" and any(aims) and (without := snapshots - len({aim for aim in aims if aim})):
        raise PipelineError(
            f"variants: by_progress follows the scout through its {snapshots} snapshots, but at the last {without} of them no "
            f"variant is aimed; set the scout's snapshots to {snapshots - without}, or have more variants"
        )


def chosen(use: Use, aims: Aims, snapshots: int, epoch: int, progress: float) -> list[int]:
    """The numbers, from 1, of the variants that a step shows of each of its examples.

    Args:
        use: how variants are used.
        aims: of each variant.
        snapshots: of the scout; 0 for none.
        epoch: counted from 0.
        progress: share of the training that lies before the step.
    """
    everyone = list(range(1, len(aims) + 1))
    if use == "all":
        return everyone
    if isinstance(use, WorstOf):
        return [everyone[(epoch * use.worst_of + number) % len(everyone)] for number in range(use.worst_of)]
    if use == "by_progress" and any(aims):
        away = {number: abs(aim - progress * snapshots) for number, aim in zip(everyone, aims, strict=True) if aim}
        everyone = [number for number, distance in away.items() if distance == min(away.values())]
    return [everyone[epoch % len(everyone)]]
