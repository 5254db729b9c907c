"""What all tests share."""

from __future__ import annotations

import compileall
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import gluepy
from gluepy.conf.schema import Settings


def pytest_configure(config: pytest.Config) -> None:
    """Compile gluepy once where Python is told to leave no bytecode: each of a thousand processes would do it again."""
    if sys.dont_write_bytecode and not hasattr(config, "workerinput"):
        compileall.compile_dir(Path(gluepy.__file__).parent, quiet=2)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Every async test runs on both."""
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, no project around it, no settings in the environment; what a run adds to `sys.path`
    goes with it."""
    for name in os.environ:
        if name.startswith("GLUEPY_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def started() -> Callable[[], list[psutil.Process]]:
    """Tells which processes below this one the test has started. Others may be there: an engine that was started here
    has left multiprocessing's resource tracker, which ends with this process."""
    before = set(psutil.Process().children(recursive=True))
    return lambda: [each for each in psutil.Process().children(recursive=True) if each not in before]


@pytest.fixture
def settings(folder: Path) -> Settings:
    """Settings of no project: `runs` has the records, `data` the files, in the current folder, which is the test's."""
    return Settings(RUNS_ROOT="runs", STORAGE_ROOT="data", CONCURRENCY=4)


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """The address of an S3 server of this machine."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(object_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a bucket of the test's own; the environment says how to reach it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    from s3fs import S3FileSystem  # type: ignore[import-untyped]

    S3FileSystem.clear_instance_cache()  # of tests with another environment
    name = f"bucket-{os.urandom(6).hex()}"
    S3FileSystem().mkdir(name)
    return f"s3://{name}"
