import io
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.config.errors import PipelineError
from pipeline.store.keys import BUILD, Build
from pipeline.store.store import Store
from pipeline.training import ray_session
from pipeline.training.ray_session import NodeCheck, join_ray
from tests.running import ROOT, kill

TOKEN = "of-the-cluster-" * 4
JOIN = """
import ray
from pipeline.config.errors import PipelineError
from pipeline.training.ray_session import join_ray
try:
    join_ray(1)
    @ray.remote
    class Actor:
        def seven(self):
            return 7
    print("joined", ray.get(Actor.remote().seven.remote()))
except PipelineError as error:
    print(error)
"""


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments of ``ray.init``, which does nothing here."""
    found: dict[str, Any] = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("socket.create_connection", lambda *address, timeout: io.BytesIO())
    monkeypatch.setattr("ray.init", lambda **given: found.update(given))
    return found


@pytest.mark.parametrize(("environment", "address"), [(None, "local"), ("here:6379", "here:6379")])
def test_a_cluster_is_joined_if_one_is_named_and_started_otherwise(
    environment: str | None, address: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment:
        monkeypatch.setenv("RAY_ADDRESS", environment)
        monkeypatch.setattr(ray_session, "_use_token", lambda address: None)
    join_ray(3)
    assert arguments["address"] == address
    # Ray rejects resources for a cluster that is already there
    assert arguments.get("num_cpus") == (3 if address == "local" else None)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [("auto", r"^no Ray cluster is reachable at auto: is there$"), ("", r"^Ray does not start on this machine: is there; ")],
)
def test_an_unavailable_ray_is_an_error_with_the_cause(
    address: str, sentence: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**given: Any) -> None:
        raise RuntimeError("nobody\nis there")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(PipelineError, match=sentence):
        join_ray(3)


def test_a_node_with_other_sources_or_another_store_is_rejected(tmp_path: Path) -> None:
    store, other = Store(tmp_path / "store"), Build(BUILD.sources, {**BUILD.libraries, "torch": "2.0.0"})
    with store.probe() as token:
        NodeCheck(store, token, BUILD)()
        with pytest.raises(PipelineError, match=r"^a worker uses other sources or libraries .*: torch "):
            NodeCheck(store, token, other)()
        with pytest.raises(
            PipelineError, match=rf"^node [\d.]+ does not see the store {tmp_path / 'other'}; set runtime.store to"
        ):
            NodeCheck(Store(tmp_path / "other"), token, BUILD)()


def home_with(folder: Path, token: str | None) -> Path:
    """The home of a user, with the token if there is one."""
    if token is not None:
        (folder / ".ray").mkdir()
        (folder / ".ray" / "auth_token").write_text(token)
    return folder


def environment(home: Path, **given: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"HOME": str(home), "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"} | given


@contextmanager
def head(token: str | None, **given: str) -> Iterator[str]:
    """The address of a cluster that a user with this token has started with ``ray start --head``."""
    with socket.socket() as free, tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        free.bind(("127.0.0.1", 0))
        port, home, said = free.getsockname()[1], home_with(Path(folder), token), Path(folder, "said")
        free.close()
        # Ray puts sockets below its folder, so its path is short
        options = ["--num-cpus=1", "--include-dashboard=false", "--object-store-memory=80000000", f"--temp-dir={home / 't'}"]
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}", *options]
        with said.open("w") as output:
            process = psutil.Popen(command, env=environment(home, **given), stdout=output, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 60
            while "Ray runtime started" not in said.read_text():
                assert process.poll() is None
                assert time.monotonic() < end, said.read_text()
                time.sleep(0.2)
            yield f"{socket.gethostbyname(socket.gethostname())}:{port}"
        finally:
            kill([process, *process.children(recursive=True)])
            process.wait(timeout=60)


@pytest.fixture(scope="module")
def heads() -> Iterator[dict[str, str]]:
    """The addresses of a cluster with the token and of one without authentication."""
    with head(TOKEN) as secured, head(None, RAY_AUTH_MODE="disabled") as open_to_all:
        yield {"secured": secured, "open": open_to_all}


NONE, ANOTHER = "there is none on this machine", "the token of this machine is another"


@pytest.mark.parametrize(
    ("cluster", "token", "given", "reason"),
    [
        ("secured", TOKEN, {}, None),
        ("secured", None, {"RAY_AUTH_TOKEN": TOKEN}, None),
        ("secured", None, {}, NONE),
        ("secured", None, {"RAY_AUTH_MODE": "token"}, NONE),
        ("secured", TOKEN, {"RAY_AUTH_TOKEN_PATH": "/no/such/file"}, NONE),
        ("secured", "another", {}, ANOTHER),
        ("secured", TOKEN, {"RAY_AUTH_MODE": "disabled"}, "none is sent, since RAY_AUTH_MODE is disabled"),
        ("open", None, {}, None),
        ("open", "another", {}, None),
    ],
)
def test_a_cluster_is_joined_with_its_token_and_a_missing_or_wrong_one_is_named(
    heads: dict[str, str], tmp_path: Path, cluster: str, token: str | None, given: dict[str, str], reason: str | None
) -> None:
    settings = environment(home_with(tmp_path, token), RAY_ADDRESS=heads[cluster], RAY_NUM_REDIS_GET_RETRIES="2", **given)
    run = subprocess.run([sys.executable, "-c", JOIN], env=settings, capture_output=True, text=True, timeout=120)
    wanted = "joined 7"
    if reason:
        wanted = (
            f"the Ray cluster at {heads[cluster]} demands its token, and {reason}; set RAY_AUTH_TOKEN to the token, or "
            "RAY_AUTH_TOKEN_PATH to a file with it (the head node has it in ~/.ray/auth_token)"
        )
    assert run.stdout.splitlines()[-1:] == [wanted], run.stderr
