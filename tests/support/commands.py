"""The interface through which tests run the operator's commands."""

from __future__ import annotations

from abc import ABC, abstractmethod

from click.testing import Result


class Commands(ABC):
    @abstractmethod
    def __call__(self, *arguments: str, text: str | None = None) -> Result:
        """Run a command, with `text` as its stdin."""

    def ok(self, *arguments: str) -> str:
        """Run a command that must succeed. Return its stdout."""
        result = self(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def error(self, *arguments: str) -> str:
        """Run a command that must fail. Return its error message, which must be one line."""
        result = self(*arguments)
        assert result.exit_code == 1
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("Error: ")
        return line
