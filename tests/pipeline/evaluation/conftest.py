from pathlib import Path

import pytest

from pipeline.evaluation.facts import TaskReport, gather
from tests.fake_run import MOVIES, RATINGS, STUDENTS, write_run


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages before the report leave of a classification and a regression; no test changes it."""
    folder = tmp_path_factory.mktemp("data")
    write_run(folder, MOVIES)
    write_run(folder, RATINGS)
    return folder


@pytest.fixture(scope="session")
def movies(data: Path) -> TaskReport:
    """The facts of the classification."""
    return gather(data, "movies", list(STUDENTS), 200)
