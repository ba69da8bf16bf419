"""Variables that seem to hold a provider's key under a wrong name, such as OPENAI_APIKEY."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Final

from providers.base import Provider

KEY: Final = re.compile(r"(?P<owner>[A-Z0-9_]+?)_?(?:API)?_?(?:KEYS?|TOKEN)", re.IGNORECASE)
SIMILAR: Final = 0.85
"""How similar two names must be, from 0 to 1: OPENAPI is a slip of OPENAI, but GROK isn't GROQ."""


def near_misses(rows: Iterable[Provider], environ: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable that seems to hold a key, but that no provider reads.

    A provider whose own variable is set has no near misses.
    """
    rows = [row for row in rows if row.api_key_env]
    read = {row.api_key_env for row in rows}
    found = []
    for name in sorted(environ.keys() - read):
        match = KEY.fullmatch(name)
        if match is None or name.startswith("SLUICE_") or not environ[name].strip():
            continue
        row = next((row for row in rows if is_near(plain(match["owner"]), row)), None)
        if row is not None and not environ.get(row.api_key_env or "", "").strip():
            found.append(f"{name} isn't used; did you mean {row.api_key_env}, for {row.name}?")
    return found


def is_near(owner: str, row: Provider) -> bool:
    """Return True if a variable's name without its ending means a provider."""
    match = KEY.fullmatch(row.api_key_env or "")
    names = {plain(row.name), *([plain(match["owner"])] if match else [])}
    alike = (difflib.SequenceMatcher(None, owner, name).ratio() for name in names)
    return max(alike) >= SIMILAR


def plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())
