"""The path prefix under which a proxy serves Sluice, such as /llm.

- gunicorn reads SCRIPT_NAME, from its environment or from a header of a trusted proxy. This module
  adds the header X-Forwarded-Prefix, which counts only if it comes from a trusted proxy too.
- A prefix that isn't a plain path is ignored, so that no link can lead to another host.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias
from urllib.parse import quote

Environ: TypeAlias = dict[str, Any]

PREFIX = re.compile(r"(/(?!\.\.?(/|$))[A-Za-z0-9._~!$&'()*+;=:@-]+)+/?")
SAFE = "/%!$&'()*+;=:@~"


def is_trusted(_environ: Environ) -> bool:
    """Trust no proxy. gunicorn.conf.py replaces this function with gunicorn's rules."""
    return False


def apply(
    environ: Environ,
    trusts: Callable[[Environ], bool],
    is_route: Callable[[str], bool],
) -> None:
    """Move the prefix of a request from its path to SCRIPT_NAME.

    Args:
        environ: the WSGI environ, which is changed.
        trusts: returns True if the request comes from a trusted proxy.
        is_route: returns True for a path that Sluice serves. Such a path has no prefix, even if it
            begins like one.
    """
    script, path = environ.get("SCRIPT_NAME", ""), environ["PATH_INFO"]
    if not script and trusts(environ):
        given = environ.get("HTTP_X_FORWARDED_PREFIX", "").strip()
        if PREFIX.fullmatch(given):
            script = given.rstrip("/")
            # Some proxies remove the prefix from the path, and some leave it there.
            if (path == script or path.startswith(f"{script}/")) and not is_route(path):
                path = path[len(script) :]
    environ["SCRIPT_NAME"] = script.rstrip("/")
    environ["PATH_INFO"] = path if path.startswith("/") else f"/{path}"


def base_of(script_name: str) -> str:
    """Return the prefix of all links: percent-encoded, without a slash at its end."""
    return quote(script_name.rstrip("/"), safe=SAFE)
