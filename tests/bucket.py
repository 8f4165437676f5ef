"""An S3 server that the tests share, and a connection to it that breaks."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.request import Request, urlopen

import boto3
import pytest

from benchmarks.bucket import BUCKET, ENVIRONMENT, create_bucket, s3_server


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of the server."""
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket; the environment has its server and the credentials."""
    for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": server}).items():
        monkeypatch.setenv(name, value)
    urlopen(Request(f"{server}/moto-api/reset", method="POST")).read()
    create_bucket(server)
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
