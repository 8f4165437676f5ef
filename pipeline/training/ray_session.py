"""Ray: joins a cluster if RAY_ADDRESS names one, else starts one on this machine; what each node must share with the driver."""

import logging
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.config.errors import PipelineError, last_line
from pipeline.store.keys import BUILD, Build, rejection
from pipeline.store.store import Store

LOCAL_OBJECT_STORE_BYTES = 256 * 2**20
"""Only jobs, receipts and the rows of a calibration travel through Ray."""

SECONDS_TO_CONNECT = 10.0
"""Timeout for a cluster's address; Ray itself would try for minutes."""


def join_ray(cores: int, log_to_driver: bool = False) -> None:
    """Join the cluster that RAY_ADDRESS names, else start Ray on this many cores of this machine.

    With ``log_to_driver`` the output of Ray's processes is printed here.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS", "")
    local: dict[str, Any] = {"num_cpus": cores, "object_store_memory": LOCAL_OBJECT_STORE_BYTES, "include_dashboard": False}
    try:
        host, _, port = address.rpartition(":")
        if host and port.isdecimal() and "/" not in host:  # other forms of an address are left to Ray
            socket.create_connection((host, int(port)), timeout=SECONDS_TO_CONNECT).close()
            _use_token(address)
        given = {} if address else local
        ray.init(address=address or "local", log_to_driver=log_to_driver, logging_level=logging.ERROR, **given)
    except (OSError, RuntimeError, ValueError, RayError) as cause:
        failed = f"no Ray cluster is reachable at {address}" if address else "Ray does not start on this machine"
        remedy = "" if address else "; runtime.workers: 0 does the work without it"
        raise PipelineError(f"{failed}: {last_line(cause)}{remedy}") from cause


def _use_token(address: str) -> None:
    """Send this user's token to a cluster that demands one, unless RAY_AUTH_MODE is set.

    Ray itself sends it only to a cluster that it finds without an address. It must not be sent to a cluster without
    authentication, where no actor would start.
    """
    try:
        from ray._private.authentication import authentication_token_setup as tokens
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
        from ray.exceptions import AuthenticationError
    except ImportError:  # Ray before 2.59
        return
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    reason = "there is none on this machine" if mode == "token" else f"none is sent, since RAY_AUTH_MODE is {mode}"
    try:
        tokens.ensure_token_if_auth_enabled(create_token_if_missing=False)
        with suppress(AuthenticationError):
            GcsClient(address=address)  # as ``ray health-check`` does
            return
        if tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False):
            reason = "the token of this machine is another"
        GcsClient(address=address)
    except AuthenticationError as cause:
        raise PipelineError(
            f"the Ray cluster at {address} demands its token, and {reason}; set RAY_AUTH_TOKEN to the token, or "
            "RAY_AUTH_TOKEN_PATH to a file with it (the head node has it in ~/.ray/auth_token)"
        ) from cause


def one_place() -> tuple[dict[str, int], str]:
    """What one worker takes of the cluster, as an option of Ray, and the name of that resource: a GPU, else a core."""
    return ({"num_gpus": 1}, "GPU") if ray.cluster_resources().get("GPU") else ({"num_cpus": 1}, "CPU")


@dataclass(frozen=True)
class NodeCheck:
    """What every node must share with the driver."""

    store: Store
    token: str
    """From ``Store.probe`` of the driver."""
    build: Build

    def __call__(self) -> None:
        """Reject this node, in one sentence, if its sources or libraries differ or it does not see the store."""
        if differing := BUILD.differs_from(self.build):
            raise PipelineError(rejection(differing))
        if not self.store.sees(self.token):
            raise PipelineError(
                f"node {ray.util.get_node_ip_address()} does not see the store {self.store}; set runtime.store to a bucket or "
                "to a folder that all nodes share at the same path"
            )
