"""Ray: joins a cluster if one is named, else starts one on this machine."""

import logging
import os
import socket
from typing import Any

import ray

from pipeline.config.errors import PipelineError, last_line
from pipeline.config.settings import RuntimeSettings

LOCAL_OBJECT_STORE_BYTES = 256 * 2**20
"""Only the rows of one job per worker and parts of files travel through Ray."""

SECONDS_TO_CONNECT = 10.0
"""Timeout for a cluster's address; Ray itself would try for minutes."""


def join_ray(runtime: RuntimeSettings, cores: int, log_to_driver: bool = False) -> None:
    """Join the cluster that the environment or the settings name, else start Ray on this many cores of this machine.

    With ``log_to_driver`` the output of Ray's processes is printed here.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS") or runtime.ray_address
    given: dict[str, Any] = {"log_to_driver": log_to_driver, "logging_level": logging.ERROR, "address": address or "local"}
    if not address:
        given |= {"num_cpus": cores, "object_store_memory": LOCAL_OBJECT_STORE_BYTES, "include_dashboard": False}
    try:
        host, _, port = (address or "").rpartition(":")
        if host and port.isdecimal() and "/" not in host:  # other forms of an address are left to Ray
            socket.create_connection((host, int(port)), timeout=SECONDS_TO_CONNECT).close()
        ray.init(**given)
    except (OSError, RuntimeError, ValueError) as cause:
        if address:
            raise PipelineError(f"no Ray cluster is reachable at {address}: {last_line(cause)}") from cause
        raise PipelineError(
            f"Ray does not start on this machine: {last_line(cause)}; runtime.workers: 0 does the work without it"
        ) from cause
