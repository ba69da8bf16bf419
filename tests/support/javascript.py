"""Run a script of static/ in Node.js: `call("markdown.js", "parse", "text")`."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from tests.support.pace import HANG_S
from tests.support.paths import ROOT

PROGRAM = """
const [url, name] = process.argv.slice(1);
let text = "";
for await (const chunk of process.stdin) text += chunk;
const module = await import(url);
const found = JSON.parse(text).map((values) => module[name](...values) ?? null);
process.stdout.write(JSON.stringify(found));
"""

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def call_each(script: str, name: str, *cases: tuple[Any, ...], before: str = "") -> list[Any]:
    """Call an exported function with each tuple of JSON values. Return the results.

    Args:
        before: what runs before the script is loaded.
    """
    url = (ROOT / "static" / script).as_uri()
    done = subprocess.run(
        ["node", "--input-type=module", "-e", before + PROGRAM, "--", url, name],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found
