"""An S3 server on this machine, and a connection to it that breaks."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.request import Request, urlopen

import boto3
import pytest

BUCKET = "results"

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}

SECONDS = 60.0
"""Longest wait for the server."""


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of moto's S3 server, which the session's tests share."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        process.kill()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket; the environment has its server and the credentials."""
    for name, value in ({"AWS_ENDPOINT_URL": server, "AWS_EC2_METADATA_DISABLED": "true"} | CREDENTIALS).items():
        monkeypatch.setenv(name, value)
    urlopen(Request(f"{server}/moto-api/reset", method="POST")).read()
    client(server).create_bucket(Bucket=BUCKET)
    return f"s3://{BUCKET}/prefix"


def client(server: str) -> "boto3.client":
    return boto3.client("s3", endpoint_url=server)


def names(server: str) -> list[str]:
    """Names below the prefix of all objects of the bucket."""
    found = client(server).list_objects_v2(Bucket=BUCKET).get("Contents", [])
    return [one["Key"].removeprefix("prefix/") for one in found if not one["Key"].endswith("/")]


def objects(server: str) -> dict[str, bytes]:
    """All objects of the bucket, by their names below the prefix."""
    s3 = client(server)
    return {name: s3.get_object(Bucket=BUCKET, Key=f"prefix/{name}")["Body"].read() for name in names(server)}


@contextmanager
def breaking(server: str, after: int, times: int) -> Iterator[str]:
    """A way to the server whose connections break after that many bytes in one direction, so many times."""
    left = [times]
    host, port = server.removeprefix("http://").split(":")

    def pump(source: socket.socket, target: socket.socket) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
                passed += len(data)
                if passed > after and left[0] > 0:
                    left[0] -= 1
                    break
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                ours, _ = listener.accept()
                theirs = socket.create_connection((host, int(port)))
                for pair in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
