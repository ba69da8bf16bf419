"""Fixtures that all tests share.

- Fixtures import Sluice's modules inside their functions. Tests of the helpers, and tests that only
  start servers, don't need these modules.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import trustme

from tests.support.daemons import CantRunError
from tests.support.fake import FakeProvider
from tests.support.pace import machine_pace
from tests.support.paths import TESTS
from tests.support.postgres import Postgres
from tests.support.redis_server import RedisServer
from tests.support.servers import UNASKED, fake_rows, make_key, settings_files

if TYPE_CHECKING:
    from flask import Flask
    from flask.testing import FlaskClient

MEMORY, ROOM = Path("/dev/shm"), 2 << 30


LONGEST = (
    "project/test_types.py",
    "live/test_soak.py",
    "live/test_ledger.py",
    "live/test_faults.py",
    "providers/test_dialects.py",
    "live/test_snippets.py",
    "live/test_browser.py",
    "live/test_chat_clients.py",
    "live/test_browser_admin.py",
    "live/test_browser_chat.py",
    "live/test_browser_resume.py",
    "live/test_openapi.py",
    "live/test_resumable.py",
    "live/test_resumable_cluster.py",
)
"""The files of tests that take longest. They start first, so that none runs alone at the end."""


def pytest_configure(config: pytest.Config) -> None:
    """Measure the machine's pace once, and put temporary files into memory if there is room.

    The tests sync hundreds of databases to disk, and a slow disk would slow down all of them.
    """
    config.option.loadscopereorder = False  # pytest-xdist would start files with few tests last
    machine_pace()
    # On a busy machine an example takes longer than hypothesis' deadline of 200 ms.
    hypothesis.settings.register_profile("sluice", deadline=None)
    hypothesis.settings.load_profile("sluice")
    share_url_builders()
    free = shutil.disk_usage(MEMORY).free if os.access(MEMORY, os.W_OK | os.X_OK) else 0
    if "TMPDIR" not in os.environ and free > ROOM:
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)


def share_url_builders() -> None:
    """Let all apps of a process share the functions that werkzeug compiles to build URLs.

    These functions don't depend on the app, and compiling them is most of the time that an app
    takes to be made. Rules with defaults are left out, because their values are part of the
    function; Sluice has none.
    """
    from werkzeug.routing import Rule

    compile_builder = Rule._compile_builder
    builders: dict[object, Any] = {}

    def shared(rule: Rule, append_unknown: bool = True) -> Any:
        if rule.defaults:
            return compile_builder(rule, append_unknown)
        key = (rule.rule, tuple(rule._trace), append_unknown)
        if key not in builders:
            builders[key] = compile_builder(rule, append_unknown)
        return builders[key]

    Rule._compile_builder = shared  # type: ignore[method-assign, assignment]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector away from the collected tests, in which it finds nothing.

    Otherwise each full collection walks their millions of objects: a third of a second of CPU time,
    during the collection of the tests and whenever a test calls `gc.collect`.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """Keep the garbage collector away from what a file of tests, or an import, leaves in memory.

    Modules and caches grow to a million objects. Walking them took a tenth of the CPU time of all
    tests, and most of the time of the files that call `gc.collect`.
    """
    imported = len(sys.modules)
    try:
        return (yield)
    finally:
        if len(sys.modules) > imported or nextitem is None or nextitem.path != item.path:
            freeze()


def freeze() -> None:
    """Collect the garbage, and hide the objects that are left from later collections."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {TESTS / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_report_header() -> str:
    return f"pace of this machine: {machine_pace():g} (bounds on times are multiplied by it)"


# With rewriting, a failed assertion in these helpers shows its values, as in a test.
pytest.register_assert_rewrite(
    *("tests.support.books", "tests.support.proofs", "tests.support.cluster_proofs"),
    "tests.support.resuming",
)


@pytest.fixture(scope="session")
def fake_process() -> Iterator[FakeProvider]:
    with FakeProvider.start() as fake:
        yield fake


@pytest.fixture
def fake(fake_process: FakeProvider) -> FakeProvider:
    """Return the fake provider, without state of earlier tests."""
    fake_process.reset()
    return fake_process


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    """Return the authority that signed the certificate of `tls_fake`. Clients must trust it."""
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
    """Return a fake provider that speaks TLS, without state of earlier tests."""
    tls_fake_process.reset()
    return tls_fake_process


@pytest.fixture(scope="session")
def ca_bundle(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of a certificate file that makes a client trust `tls_fake`."""
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
    """Yield the URL of an empty PostgreSQL database, in the form of DATABASE_URL."""
    name, url = postgres.new_database()
    yield url
    postgres.drop(name)


@pytest.fixture(autouse=True)
def _close_ledgers(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Close the ledgers that the test leaves open, before its files are deleted.

    They would notice that, and report it while another test runs.
    """
    if "tmp_path" in request.fixturenames:
        request.getfixturevalue("tmp_path")  # so that it is removed after this fixture
    from ledger.ledger import Ledger

    made: list[Ledger] = []
    prepare = Ledger.__init__

    def init(ledger: Ledger, *args: Any, **options: Any) -> None:
        prepare(ledger, *args, **options)
        made.append(ledger)

    monkeypatch.setattr(Ledger, "__init__", init)
    yield
    for ledger in made:
        ledger.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return SQLAlchemy's URL of an empty database, once for each kind that the ledger supports."""
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
    """Return a running, empty Redis, whatever earlier tests did to it."""
    redis_process.refresh()
    return redis_process


@pytest.fixture
def new_key() -> tuple[str, str]:
    return make_key()


@pytest.fixture
def key(new_key: tuple[str, str]) -> str:
    return new_key[0]


@pytest.fixture
def app(fake: FakeProvider, tmp_path: Path, new_key: tuple[str, str]) -> Flask:
    """Return Sluice's app in the test's process. Its providers lead to the fixture `fake`."""
    from app import create_app
    from config import Settings

    (tmp_path / "sluice.toml").write_text(fake_rows(fake.base_url))
    (tmp_path / "keys.jsonl").touch(mode=0o600)
    (tmp_path / "keys.jsonl").write_text(new_key[1])
    return create_app(Settings.from_env(settings_files(tmp_path) | UNASKED))


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail the test if one of Sluice's log lines contains a key or the hash of a key."""
    caplog.set_level(logging.DEBUG, "sluice")
    yield
    for record in caplog.records:
        assert "sk-sluice-" not in record.getMessage()
        assert "sha256:" not in record.getMessage()
