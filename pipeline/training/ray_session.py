"""Ray, joined where there is a cluster and started where there is none. Knows addresses; not what is done with it."""

import logging
import os
import socket

import ray

from pipeline.config.errors import PipelineError, last_line
from pipeline.config.settings import RuntimeSettings

LOCAL_OBJECT_STORE_BYTES = 256 * 2**20
"""What goes through Ray is the rows of one job a worker, and pieces of files."""

ANSWER_SECONDS = 10.0
"""How long a cluster is given to answer its address; Ray itself would try for minutes."""


def join_ray(runtime: RuntimeSettings, cores: int, log_to_driver: bool = False) -> None:
    """Join the cluster that the environment or the settings name, else start Ray on so many cores of this machine.

    Args:
        runtime: may name a cluster.
        cores: that a Ray started here may use.
        log_to_driver: whether the output of Ray's processes is printed here.

    Raises:
        PipelineError: no cluster answers, or Ray does not start.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS") or runtime.ray_address
    if address:
        try:
            _reach(address)
            ray.init(address=address, log_to_driver=log_to_driver, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as cause:
            raise PipelineError(f"no Ray cluster answers at {address}: {last_line(cause)}") from cause
    else:
        _start_ray(cores, log_to_driver)


def _reach(address: str) -> None:
    """Knock at ``host:port``; what is no such address is Ray's to understand."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()


def _start_ray(cores: int, log_to_driver: bool) -> None:
    try:
        ray.init(
            address="local",
            num_cpus=cores,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=log_to_driver,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError) as cause:
        raise PipelineError(
            f"Ray does not start on this machine: {last_line(cause)}; runtime.workers: 0 does the work without it"
        ) from cause
