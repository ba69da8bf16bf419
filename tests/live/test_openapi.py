"""Test that a live server conforms to its OpenAPI document.

The number of cases decides when the test ends, not the time: a slow machine tests as much as a fast
one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from tests.support.pace import HANG_S, scaled
from tests.support.servers import UNTROUBLED, Server

pytestmark = pytest.mark.thorough

PROGRAM: Final = Path(sys.executable).with_name("schemathesis")
EXAMPLES: Final = 2
"""The most random cases of an operation, besides those that follow from the document."""
LEAST_CASES, LEAST_OF_ALL = 10, 500
"""The least cases of each operation, and of all operations together."""
CHECKS: Final = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_headers_conformance", "response_schema_conformance", "negative_data_rejection"),
)
OF_ADMINS: Final = "^/api/v1/(keys|groups|usage|streams|providers|user/key)(/|$)"
"""The paths that do their work for admin keys only. Other keys get 403."""


def cases_of(events: Path) -> Counter[str]:
    """Return the number of cases of each operation, from the report of a run."""
    found: Counter[str] = Counter()
    for line in events.read_text().splitlines():
        scenario = json.loads(line).get("ScenarioFinished")
        if scenario is not None:
            recorder = scenario["recorder"]
            found[recorder["label"]] += len(recorder.get("cases", ()))
    return found


@pytest.mark.parametrize(("admin", "paths"), [(False, ".*"), (True, OF_ADMINS)])
def test_the_live_server_conforms_to_its_openapi_document(
    tmp_path: Path, admin: bool, paths: str
) -> None:
    events = tmp_path / "events.ndjson"
    with Server(env=UNTROUBLED | {"SLUICE_DEFAULT_MODEL": "local/pydoc"}) as server:
        # No call may leave this machine.
        key = server.add_key(models=["local/*"], admin=admin)
        found = subprocess.run(
            [
                *(PROGRAM, "run", f"{server.url}/openapi.json", "--no-color"),
                *("--header", f"Authorization: Bearer {key}", "--header", f"X-API-Key: {key}"),
                *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
                *("--max-examples", str(EXAMPLES), "--seed", "1", "--request-timeout", "10"),
                *("--generation-database", "none", "--workers", "1", "--no-shrink"),
                *("--suppress-health-check", "filter_too_much", "--include-path-regex", paths),
                *("--report-ndjson-path", str(events)),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=scaled(4 * HANG_S),
            check=False,
        )
    report = found.stdout + found.stderr
    assert found.returncode == 0, report[-20000:]
    cases = cases_of(events)
    assert "GET /api/v1/keys" in cases
    assert [name for name, count in cases.items() if count < LEAST_CASES] == []
    assert cases.total() >= LEAST_OF_ALL
