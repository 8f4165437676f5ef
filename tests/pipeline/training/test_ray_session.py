import io
from typing import Any

import pytest

from pipeline.config.errors import PipelineError
from pipeline.config.settings import RuntimeSettings
from pipeline.training.ray_session import join_ray
from tests.world import RUNTIME


def runtime(address: str | None) -> RuntimeSettings:
    return RuntimeSettings.model_validate(RUNTIME | {"ray_address": address})


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments of ``ray.init``, which does nothing here."""
    found: dict[str, Any] = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("socket.create_connection", lambda *address, timeout: io.BytesIO())
    monkeypatch.setattr("ray.init", lambda **given: found.update(given))
    return found


@pytest.mark.parametrize(
    ("environment", "setting", "address"),
    [(None, None, "local"), (None, "ray:6379", "ray:6379"), ("here:6379", "ray:6379", "here:6379")],
)
def test_a_cluster_is_joined_if_one_is_named_and_started_otherwise(
    environment: str | None, setting: str | None, address: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    join_ray(runtime(setting), 3)
    assert arguments["address"] == address
    # Ray rejects resources for a cluster that is already there
    assert arguments.get("num_cpus") == (3 if address == "local" else None)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [("auto", r"^no Ray cluster is reachable at auto: is there$"), (None, r"^Ray does not start on this machine: is there; ")],
)
def test_an_unavailable_ray_is_an_error_with_the_cause(
    address: str | None, sentence: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**given: Any) -> None:
        raise RuntimeError("nobody\nis there")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(PipelineError, match=sentence):
        join_ray(runtime(address), 3)
