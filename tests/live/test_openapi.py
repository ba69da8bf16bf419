"""Test that a live server conforms to its OpenAPI document."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pace import HANG_S
from tests.support.servers import UNTROUBLED, Server

pytestmark = pytest.mark.thorough

PROGRAM = Path(sys.executable).with_name("schemathesis")
EXAMPLES, MOST_S = 2, 30
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_headers_conformance", "response_schema_conformance", "negative_data_rejection"),
)


def test_the_live_server_conforms_to_its_openapi_document(tmp_path: Path) -> None:
    with Server(env=UNTROUBLED | {"SLUICE_DEFAULT_MODEL": "local/pydoc"}) as server:
        key = server.add_key(models=["local/*"])  # so that no call leaves this machine
        found = subprocess.run(
            [
                *(PROGRAM, "run", f"{server.url}/openapi.json", "--no-color"),
                *("--header", f"Authorization: Bearer {key}", "--header", f"X-API-Key: {key}"),
                *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
                *("--max-examples", str(EXAMPLES), "--seed", "1", "--request-timeout", "10"),
                *("--generation-database", "none", "--workers", "1", "--no-shrink"),
                *("--suppress-health-check", "filter_too_much", "--max-time", str(MOST_S)),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )
    report = found.stdout + found.stderr
    assert found.returncode == 0, report[-20000:]
    assert re.search(r"[1-9][0-9]{2,} generated", report), report[-2000:]
