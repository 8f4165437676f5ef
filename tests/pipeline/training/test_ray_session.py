import io
from typing import Any

import pytest

from pipeline.config.errors import PipelineError
from pipeline.config.runtime import RuntimeSettings
from pipeline.training import ray_session
from pipeline.training.ray_session import join_ray
from tests.world import RUNTIME


def runtime(address: str | None) -> RuntimeSettings:
    return RuntimeSettings.model_validate(RUNTIME | {"ray_address": address})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments of ``ray.init``, which does nothing here."""
    arguments: dict[str, Any] = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_session.socket, "create_connection", lambda *address, timeout: io.BytesIO())
    monkeypatch.setattr(ray_session.ray, "init", lambda **given: arguments.update(given))
    return arguments


@pytest.mark.parametrize(
    ("environment", "setting", "address"),
    [(None, None, "local"), (None, "ray:6379", "ray:6379"), ("here:6379", "ray:6379", "here:6379")],
)
def test_a_cluster_is_joined_if_one_is_named_and_started_otherwise(
    environment: str | None, setting: str | None, address: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    join_ray(runtime(setting), 3)
    assert asked["address"] == address
    # Ray refuses resources for a cluster that is already there
    assert asked.get("num_cpus") == (3 if address == "local" else None)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [("auto", r"^no Ray cluster answers at auto: is there$"), (None, r"^Ray does not start on this machine: is there; ")],
)
def test_a_ray_that_cannot_be_had_is_an_error_with_the_cause(
    address: str | None, sentence: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**given: Any) -> None:
        raise RuntimeError("nobody\nis there")

    monkeypatch.setattr(ray_session.ray, "init", init)
    with pytest.raises(PipelineError, match=sentence):
        join_ray(runtime(address), 3)
