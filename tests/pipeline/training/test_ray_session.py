import io
from typing import Any

import pytest

from pipeline.config.errors import PipelineError
from pipeline.config.settings import RuntimeSettings
from pipeline.training import ray_session
from pipeline.training.ray_session import join_ray
from tests.world import RUNTIME


def runtime(address: str | None = None) -> RuntimeSettings:
    return RuntimeSettings.model_validate(RUNTIME | {"ray_address": address})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Ray was asked for; it is not started."""
    arguments: dict[str, Any] = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_session.socket, "create_connection", lambda *address, timeout: io.BytesIO())
    monkeypatch.setattr(ray_session.ray, "init", lambda **given: arguments.update(given))
    return arguments


def test_ray_is_started_here_for_as_many_cores_as_asked(asked: dict[str, Any]) -> None:
    join_ray(runtime(), 3)
    assert (asked["address"], asked["num_cpus"]) == ("local", 3)


def test_a_running_cluster_is_joined_where_the_settings_name_one(asked: dict[str, Any]) -> None:
    join_ray(runtime("ray.example:6379"), 3)
    assert asked["address"] == "ray.example:6379"
    assert "num_cpus" not in asked, "Ray refuses resources for a cluster that is already there"


def test_the_environment_names_a_cluster_before_the_settings_do(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "here.example:6379")
    join_ray(runtime("ray.example:6379"), 3)
    assert asked["address"] == "here.example:6379"


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("auto", r"^no Ray cluster answers at auto: is there$"),
        (None, r"^Ray does not start on this machine: is there; runtime.workers: 0 does the work without it$"),
    ],
)
@pytest.mark.parametrize("error", [ConnectionError, ValueError, RuntimeError])
def test_a_ray_that_cannot_be_had_is_told_with_the_cause(
    error: type[Exception], address: str | None, sentence: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**given: Any) -> None:
        raise error("nobody\nis there")

    monkeypatch.setattr(ray_session.ray, "init", init)
    with pytest.raises(PipelineError, match=sentence):
        join_ray(runtime(address), 3)
