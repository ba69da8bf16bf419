"""Paths of the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).resolve().parent.parent
ROOT: Final = TESTS.parent
FIXTURES: Final = TESTS / "fixtures"
