"""What runs the operator's commands in tests."""

from __future__ import annotations

from abc import ABC, abstractmethod

from click.testing import Result


class Commands(ABC):
    """The commands of an app within the test's process."""

    @abstractmethod
    def __call__(self, *arguments: str, text: str | None = None) -> Result:
        """Run one. text: its stdin."""

    def ok(self, *arguments: str) -> str:
        result = self(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def error(self, *arguments: str) -> str:
        """The one line on stderr of a command that fails."""
        result = self(*arguments)
        assert result.exit_code == 1
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("Error: ")
        return line
