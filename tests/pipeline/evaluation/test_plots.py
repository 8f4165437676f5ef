import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.facts import TaskReport, gather
from pipeline.evaluation.plots import divergence, quality_latency, training
from tests.fake_run import STUDENTS, write_run


def texts(svg: str) -> list[str]:
    """The words that are drawn."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


@pytest.mark.parametrize("task", ["movies", "movie_scores"])
def test_every_model_is_drawn_and_named_once(task: str, data: Path) -> None:
    report = gather(data, task, list(STUDENTS), 200)
    names = {result.model for result in report.results}
    picture = quality_latency(report).svg
    assert Counter(text for text in texts(picture) if text in names) == Counter(names)
    series = [f"--series-{number}" for number in range(len(STUDENTS))]
    markers = Counter(re.findall(r"<use [^>]*fill: var\((--[\w-]+)\)", picture))
    assert {name: markers[name] for name in [*series, "--ink"]} == dict.fromkeys([*series, "--ink"], 1)
    dev, loss = (picture.svg for picture in training(report))
    for picture, models in ((dev, [*series, "--ink"]), (loss, series)):
        curves = Counter(re.findall(r'<path [^>]*style="fill: none;[^"]*stroke: var\((--[\w-]+)\)', picture))
        assert {name: curves[name] for name in [*series, "--ink"]} == {name: int(name in models) for name in [*series, "--ink"]}


def test_the_dotted_line_joins_the_models_of_the_pareto_line(movies: TaskReport) -> None:
    (path,) = re.findall(r'<path d="([^"]+)"[^>]*stroke-dasharray', quality_latency(movies).svg)
    corners = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", path), dtype=float)
    expected = sorted((np.log(r.latency_ms), r.value) for r in movies.results if r.pareto)
    assert len(movies.results) > len(expected) > 1
    found = corners[::2]  # between two models a step has one more corner
    assert len(corners) == 2 * len(expected) - 1
    for axis, sign in ((0, 1), (1, -1)):
        wanted = np.array(expected)[:, axis]
        drawn = sign * found[:, axis]
        np.testing.assert_allclose((drawn - drawn[0]) / np.ptp(drawn), (wanted - wanted[0]) / np.ptp(wanted), atol=1e-3)


def test_the_histogram_names_every_recipe_once_with_its_share_of_flips(tmp_path: Path) -> None:
    write_run(tmp_path, variants=5, recipes=[["mask"], ["delete", "swap"]], students=["half"])
    report = gather(tmp_path, "movies", ["half"], 200)
    drawn = texts(divergence(report).svg)
    for name, share in zip(report.flips["variants"], report.flips["flipped"], strict=True):
        assert drawn.count(name) == 1
        assert f"{share:.1%}" in drawn


@pytest.mark.parametrize("task", ["movies", "movie_scores"])
def test_all_colours_are_variables_of_the_page(task: str, data: Path) -> None:
    report = gather(data, task, list(STUDENTS), 200)
    template = Path("pipeline/evaluation/report.html.j2").read_text(encoding="utf-8")
    light, dark, printed, *_ = (set(re.findall(r"(--[\w-]+):", part)) for part in template.split(":root {")[1:])
    assert light == dark == printed
    for picture in (quality_latency(report), divergence(report), *training(report)):
        assert not re.findall(r"#[0-9a-f]{6}", picture.svg)
        assert set(re.findall(r"var\((--[\w-]+)\)", picture.svg)) <= light
