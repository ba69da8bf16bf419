"""The messages that the start and the commands can print, collected from the source.

`python -m tests.support.messages` prints them.

- A message is a list of its literal parts: `f"{name} is not a setting"` is `["is not a setting"]`.
- The texts of errors in ERRORS count, of `sys.exit`, of warnings and errors in the log, and of what
  a command prints to stderr; and the texts in a function that returns warnings. Makefile and
  launcher count with what they print.
- Messages without a literal part pass on another one's text, which is found where it is made.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.paths import ROOT

ERRORS: Final = (
    "ConfigError",
    "KeyFileError",
    "BrokenLine",
    "Unreadable",
    "DatabaseFileChanged",
)
"""The errors of Sluice whose text an operator reads."""
OF_CLICK: Final = ("ClickException", "UsageError", "BadParameter")
CALLS: Final = (
    *("log.warning", "log.error", "sys.exit", "problems.append"),
    *("self._report", "self._lack", "self._keep"),  # of the key file, whose state they log
)
REFUSED: Final = "REFUSED"
"""The constant of gunicorn.conf.py with the reasons for which it refuses options."""
SHELL_ECHO = re.compile(r"echo \"((?:[^\"\\]|\\.)*)\" *>&2")
GAP = re.compile(r"%[-\d.]*[a-z]|\$\([^)]*\)|\$\{[^}]*\}|\$\$?\w+")
"""What is filled in when a message is logged, or printed by a shell."""
PREFIX = re.compile("^(sluice|Warning|Error): ")
LETTERS = re.compile(r"[^\W\d_]{3}")


class Message(NamedTuple):
    place: str
    parts: tuple[str, ...]
    """The literal parts that have a word, in their order."""

    def is_in(self, text: str) -> bool:
        at = 0
        for part in self.parts:
            at = text.find(part, at)
            if at < 0:
                return False
            at += len(part)
        return True


def messages() -> list[Message]:
    found = [message for path in sources() for message in of_source(path)]
    found += [message for path in (ROOT / "Makefile", ROOT / "sluice") for message in printed(path)]
    return sorted(set(found))


def sources() -> list[Path]:
    """Return the Python files that a server and its commands run."""
    skipped = {"tests", "bench", "examples", "build", "docs"}
    return [
        path
        for path in sorted(ROOT.glob("**/*.py"))
        if not any(part in skipped or part[0] == "." for part in path.relative_to(ROOT).parts)
    ]


def of_source(path: Path) -> Iterator[Message]:
    name = path.relative_to(ROOT).as_posix()
    tree = ast.parse(path.read_text())
    for node in texts(tree):
        parts = literal_parts(node)
        if parts:
            yield Message(f"{name}:{node.lineno}", parts)


def texts(tree: ast.Module) -> Iterator[ast.expr]:
    """Yield the expressions of a file that make messages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and prints(node):
            yield from node.args
        elif isinstance(node, ast.FunctionDef) and warns(node):
            yield from sentences(node)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == REFUSED:
            yield from sentences(node.value)


def warns(function: ast.FunctionDef) -> bool:
    """Return True if a function returns warnings, by its name or its docstring."""
    return "warnings" in function.name or "Return a warning" in (ast.get_docstring(function) or "")


def prints(call: ast.Call) -> bool:
    called = ast.unparse(call.func)
    to_stderr = any(word.arg == "err" for word in call.keywords)
    return (
        called.rpartition(".")[2] in (*ERRORS, *OF_CLICK)
        or called in CALLS
        or (called == "click.echo" and to_stderr)
    )


def sentences(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the texts of more than one word in a function or a constant, but no docstring."""
    inside: set[ast.AST] = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Expr):  # a docstring
            inside |= {each.value}
        elif isinstance(each, ast.JoinedStr):
            inside |= set(ast.walk(each)) - {each}
            yield each
        elif each not in inside and isinstance(each, ast.Constant) and " " in str(each.value):
            yield each


def literal_parts(node: ast.expr) -> tuple[str, ...]:
    pieces: list[str] = [""]
    values = node.values if isinstance(node, ast.JoinedStr) else [node]
    for value in values:
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            pieces[-1] += value.value
        else:
            pieces.append("")
    return parts_of(pieces)


def parts_of(pieces: list[str]) -> tuple[str, ...]:
    split = [part for piece in pieces for part in GAP.split(piece)]
    plain = [PREFIX.sub("", re.sub(r"\s+", " ", part)).strip() for part in split]
    return tuple(part for part in plain if LETTERS.search(part))


def printed(path: Path) -> Iterator[Message]:
    """Yield what a Makefile or a shell script prints to stderr."""
    if not path.exists():
        return
    for found in SHELL_ECHO.finditer(path.read_text()):
        if parts := parts_of([found[1]]):
            yield Message(path.name, parts)


def main() -> None:
    for message in messages():
        print(f"{message.place}: {' ... '.join(message.parts)}")


if __name__ == "__main__":
    main()
