"""Tests of the endpoints for keys on a real server, while a command changes the same file."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
import requests

from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S, scaled
from tests.support.paths import ROOT
from tests.support.servers import Server, fake_rows

pytestmark = pytest.mark.thorough

THREADS, EACH, COMMANDS = 8, 6, 6
KEYS = "/api/v1/keys"


class Office:
    """A server with an admin key. Threads create keys over HTTP, and one reads a stream."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.headers = {"X-API-Key": server.add_key("operator", admin=True)}
        self.failures: list[str] = []
        self.gaps: list[float] = []
        self.over = threading.Event()
        server.wait(lambda: self.get(KEYS).status_code == 200)

    def get(self, path: str, **headers: str) -> requests.Response:
        found = self.headers | {name.replace("_", "-"): text for name, text in headers.items()}
        return requests.get(f"{self.server.url}{path}", headers=found, timeout=HANG_S)

    def listen(self) -> None:
        """Note the seconds between the lines of a stream."""
        body = {"model": "fake/m", "prompt": "x", "stream": True}
        url = f"{self.server.url}/api/v1/completions"
        with requests.post(
            url, json=body, headers=self.headers, stream=True, timeout=HANG_S
        ) as got:
            latest = time.monotonic()
            for _ in got.iter_lines():
                self.gaps.append(time.monotonic() - latest)
                latest = time.monotonic()
                if self.over.is_set():
                    return

    def work(self, number: int) -> None:
        """Create keys, each of which must work at once."""
        url = f"{self.server.url}{KEYS}"
        for turn in range(EACH):
            body = {"name": f"http-{number}-{turn}"}
            made = requests.post(url, json=body, headers=self.headers, timeout=HANG_S)
            if made.status_code != 201:
                self.failures.append(made.text)
            elif self.get("/v1/models", X_API_Key=made.json()["key"]).status_code != 200:
                self.failures.append(f"{body} doesn't work at once")


def test_keys_change_by_http_and_by_commands_at_once_while_a_stream_runs(
    fake: FakeProvider,
) -> None:
    """Nothing is lost, no greenlet waits for a lock that another one holds, and streams go on."""
    texts = [f"{number} " for number in range(2000)]
    fake.default(fp.sse(fp.chunks(texts), interval=0.02))
    with Server(fake_rows(fake.base_url)) as server:
        office = Office(server)
        listener = threading.Thread(target=office.listen)
        workers = [threading.Thread(target=office.work, args=(n,)) for n in range(THREADS)]
        for thread in (listener, *workers):
            thread.start()
        for number in range(COMMANDS):
            run(server, "create", "--name", f"command-{number}")
        for thread in workers:
            thread.join(HANG_S)
        office.over.set()
        listener.join(HANG_S)
        assert office.failures == []
        rows = (server.directory / "keys.jsonl").read_text().splitlines()
        names = Counter(json.loads(row)["name"].partition("-")[0] for row in rows)
        assert (names["http"], names["command"]) == (THREADS * EACH, COMMANDS)
        assert office.gaps
        assert max(office.gaps) < scaled(2)
        log = office.get(f"{KEYS}/log?limit=100").json()["data"]
        ways = Counter(change["via"] for change in log if change["action"] == "create")
        assert ways == {"http": THREADS * EACH, "cli": COMMANDS}
        run(server, "disable", "http-0-0")
        server.wait(lambda: office.get(f"{KEYS}/http-0-0").json()["status"] == "disabled")
        assert office.headers["X-API-Key"] not in server.output()


def run(server: Server, *words: str) -> None:
    command = [sys.executable, "-m", "flask", "--app", "wsgi.py", "keys", *words]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=server._env,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
