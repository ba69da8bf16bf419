"""Fixtures that all tests share. The parts of Sluice are imported late, so that the tests of the
harness need none of them, and a test that starts servers doesn't import them in vain."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.support.daemons import CantRunError
from tests.support.fake import FakeProvider
from tests.support.pace import machine_pace
from tests.support.postgres import Postgres
from tests.support.redis_server import RedisServer
from tests.support.servers import fake_rows, make_key, settings_files

if TYPE_CHECKING:
    from flask import Flask
    from flask.testing import FlaskClient

MEMORY, ROOM = Path("/dev/shm"), 2 << 30


def pytest_configure() -> None:
    """Measure the machine's pace once, and put temporary files into memory where it has room.

    Hundreds of databases are synced to their disk, and a slow disk is not what is tested.
    """
    machine_pace()
    free = shutil.disk_usage(MEMORY).free if os.access(MEMORY, os.W_OK | os.X_OK) else 0
    if "TMPDIR" not in os.environ and free > ROOM:
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)


def pytest_report_header() -> str:
    return f"machine's pace: {machine_pace():g} (bounds on times are multiplied by it)"


# Failed assertions in these helpers show their values, as those in a test do.
pytest.register_assert_rewrite(
    "tests.support.books", "tests.support.proofs", "tests.support.cluster_proofs"
)


@pytest.fixture(scope="session")
def fake_process() -> Iterator[FakeProvider]:
    with FakeProvider.start() as fake:
        yield fake


@pytest.fixture
def fake(fake_process: FakeProvider) -> FakeProvider:
    """A fake provider that has forgotten other tests."""
    fake_process.reset()
    return fake_process


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    """Signs the certificate of `tls_fake`; a client must be told to trust it."""
    return trustme.CA()


@pytest.fixture(scope="session")
def tls_fake_process(
    ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeProvider]:
    path = tmp_path_factory.mktemp("tls") / "fake.pem"
    path.write_bytes(ca.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.bytes())
    with FakeProvider.start(tls=path) as fake:
        yield fake


@pytest.fixture
def tls_fake(tls_fake_process: FakeProvider) -> FakeProvider:
    """A fake provider that speaks TLS, and has forgotten other tests."""
    tls_fake_process.reset()
    return tls_fake_process


@pytest.fixture(scope="session")
def ca_bundle(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file by which a client trusts `tls_fake`."""
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    try:
        with Postgres() as server:
            yield server
    except CantRunError as error:
        pytest.skip(str(error))


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """An empty PostgreSQL database, as DATABASE_URL has it."""
    name, url = postgres.new_database()
    yield url
    postgres.drop(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind that the ledger knows, as SQLAlchemy has it."""
    from ledger.database import database_url

    if request.param == "sqlite":
        return database_url(None, tmp_path / "sluice.db")
    return database_url(request.getfixturevalue("postgres_url"), tmp_path)


@pytest.fixture(scope="session")
def redis_process() -> Iterator[RedisServer]:
    try:
        with RedisServer() as server:
            yield server
    except CantRunError as error:
        pytest.skip(str(error))


@pytest.fixture
def redis_server(redis_process: RedisServer) -> RedisServer:
    """A Redis that runs, and has forgotten other tests and what they did to it."""
    redis_process.refresh()
    return redis_process


@pytest.fixture
def new_key() -> tuple[str, str]:
    return make_key()


@pytest.fixture
def key(new_key: tuple[str, str]) -> str:
    """The key that `app` knows."""
    return new_key[0]


@pytest.fixture
def app(fake: FakeProvider, tmp_path: Path, new_key: tuple[str, str]) -> Flask:
    """Sluice within the test's process; its rows `fake` and `fakechat` lead to `fake`."""
    from app import create_app
    from config import Settings

    (tmp_path / "sluice.toml").write_text(fake_rows(fake.base_url))
    (tmp_path / "keys.jsonl").touch(mode=0o600)
    (tmp_path / "keys.jsonl").write_text(new_key[1])
    return create_app(Settings.from_env(settings_files(tmp_path)))


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail the test if a key or a key's hash got into one of Sluice's log lines."""
    caplog.set_level(logging.DEBUG, "sluice")
    yield
    for record in caplog.records:
        assert "sk-sluice-" not in record.getMessage()
        assert "sha256:" not in record.getMessage()
