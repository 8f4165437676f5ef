"""What the variants did to the teacher's answers: how far, and how often to another label. Knows shards, not other folders."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from pipeline.shards.reader import Shards

BINS_A_DECADE, DECADES = 8, 6
"""The histogram of divergence ends at the power of ten above its greatest value and reaches this many below it."""


def answers_to_variants(shards: Shards) -> dict[str, pd.DataFrame]:
    """Columns divergence and flipped of the variants that a recipe made, by its steps; where it made all, of each by itself."""
    recipes = shards.manifest.recipes
    found = dict[str, list[pd.DataFrame]]()
    for number in range(1, shards.manifest.variants + 1):
        recipe = " + ".join(recipes[(number - 1) % len(recipes)])
        rows = shards.rows("train", number)
        table = pd.DataFrame({name: rows.column(name).to_numpy() for name in ("divergence", "flipped")})
        found.setdefault(recipe if len(recipes) > 1 else f"variant {number}", []).append(table)
    return {name: pd.concat(tables) for name, tables in found.items()}


def histogram(task: str, variants: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Counts on one logarithmic grid for all variants; what lies below it is counted in its first bin."""
    greatest = max((float(rows["divergence"].max()) for rows in variants.values()), default=0.0)
    top = int(np.ceil(np.log10(greatest))) if greatest > 0 else 0
    edges = 10.0 ** np.linspace(top - DECADES, top, DECADES * BINS_A_DECADE + 1)
    tables = [pd.DataFrame(columns=["task", "variants", "low", "high", "count"])]
    for name, rows in variants.items():
        counts, _ = np.histogram(rows["divergence"].clip(edges[0], edges[-1]), edges)
        bins = {"low": edges[:-1], "high": edges[1:], "count": counts}
        tables.append(pd.DataFrame({"task": task, "variants": name} | bins))
    return pd.concat(tables[1:] or tables)


def flips(task: str, variants: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How many of the teacher's answers changed, and by how much in the median."""
    rows = [(task, n, len(r), float(r["flipped"].mean()), float(r["divergence"].median())) for n, r in variants.items()]
    return pd.DataFrame(rows, columns=["task", "variants", "rows", "flipped", "divergence"])
