"""The messages that the start and the commands can print, collected from the source.

`python -m tests.support.messages` prints them.

- The texts of these count: errors of the kinds in ERRORS, `sys.exit`, warnings and errors in the
  log, what a command prints to stderr, what the set-up says, what is wrong with a provider, and
  what a function returns as a warning. The launcher and the Makefile count with what they print to
  stderr.
- If such a text comes from a variable or a function of the same file, its texts count too.
- A message is a list of its literal parts: `f"{name} is not a setting"` is `["is not a setting"]`.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from tests.support.paths import ROOT

ERRORS: Final = (
    "ConfigError",
    "KeyFileError",
    "BrokenLine",
    "Unreadable",
    "DatabaseFileChanged",
    "SetupError",
)
"""The errors of Sluice whose text an operator reads. Classes derived from them count too."""
OF_CLICK: Final = ("ClickException", "UsageError", "BadParameter")
OF_CHECKS: Final = ("Reason", "Check", "result")
"""The calls that make the messages of `./sluice providers` about a host that doesn't answer."""
CALLS: Final = (
    *("log.warning", "log.error", "sys.exit", "problems.append", "say"),
    *("self._report", "self._lack", "self._keep"),  # of the key file, whose state they log
)
REFUSED: Final = "REFUSED"
"""The constant of gunicorn.conf.py with the reasons for which it refuses options."""
WARNS: Final = re.compile(r"\b(?:return|yield) (?:a )?warnings?\b", re.IGNORECASE)
SHELL_ECHO = re.compile(r"echo \"((?:[^\"\\]|\\.)*)\" *>&2")
GAP = re.compile(r"%[-\d.]*[a-z]|\$\([^)]*\)|\$\{[^}]*\}|\$\$?\w+")
"""The places of a message that are filled in when it is logged, or printed by a shell."""
PREFIX = re.compile("^(sluice|Warning|Error): ")
LETTERS = re.compile(r"[^\W\d_]{3}")

Scope: TypeAlias = ast.Module | ast.FunctionDef


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


@cache
def messages() -> list[Message]:
    kinds = error_kinds()
    found = [message for path in sources() for message in Source(path, kinds).messages()]
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


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def error_kinds() -> frozenset[str]:
    """Return the names of the errors whose texts count."""
    bases = {
        node.name: {ast.unparse(base) for base in node.bases}
        for path in sources()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef)
    }
    found: set[str] = set()
    more = {*ERRORS}
    while more:
        found |= more
        more = {name for name, above in bases.items() if above & found} - found
    return frozenset((*found, *OF_CLICK, *OF_CHECKS))


class Source:
    def __init__(self, path: Path, kinds: frozenset[str]) -> None:
        self._name = path.relative_to(ROOT).as_posix()
        self._kinds = kinds
        self._tree = tree_of(path)
        nodes = ast.walk(self._tree)
        self._functions = {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}

    def messages(self) -> Iterator[Message]:
        for node in self._texts():
            parts = literal_parts(node)
            if any(" " in part for part in parts):  # a single word is a name
                yield Message(f"{self._name}:{node.lineno}", parts)

    def _texts(self) -> Iterator[ast.expr]:
        """Yield the expressions that make messages."""
        scopes: list[Scope] = [self._tree, *self._functions.values()]
        for scope in scopes:
            values = values_in(scope)
            for node in ast.walk(scope):
                if isinstance(node, ast.Call) and self._prints(node):
                    for argument in (*node.args, *(word.value for word in node.keywords)):
                        yield from self._traced(argument, values, frozenset())
        for name, function in self._functions.items():
            if "warnings" in name or WARNS.search(ast.get_docstring(function) or ""):
                yield from sentences(function)
        for refused in values_in(self._tree)[REFUSED]:
            yield from sentences(refused)

    def _prints(self, call: ast.Call) -> bool:
        called = ast.unparse(call.func)
        to_stderr = called == "click.echo" and any(word.arg == "err" for word in call.keywords)
        return called.rpartition(".")[2] in self._kinds or called in CALLS or to_stderr

    def _traced(
        self, node: ast.expr, values: dict[str, list[ast.expr]], seen: frozenset[str]
    ) -> Iterator[ast.expr]:
        """Yield the texts of an expression, and of the variables and functions in it."""
        if isinstance(node, ast.JoinedStr | ast.Constant):
            yield node
        for name in names_in(node):
            if name in seen:
                continue
            for value in values[name]:
                yield from self._traced(value, values, seen | {name})
            if function := self._functions.get(name):
                yield from sentences(function)
        if isinstance(node, ast.IfExp | ast.BoolOp):
            yield from sentences(node)


def values_in(scope: Scope) -> dict[str, list[ast.expr]]:
    """Return what a scope assigns to each name."""
    found: dict[str, list[ast.expr]] = defaultdict(list)
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign):
            found[ast.unparse(node.targets[0])].append(node.value)
        elif isinstance(node, ast.NamedExpr):
            found[node.target.id].append(node.value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            found[ast.unparse(node.target)].append(node.value)
    return found


def names_in(node: ast.expr) -> Iterator[str]:
    """Yield the variables that an expression is made of, and the functions that it calls."""
    parts: Iterable[ast.AST] = [node]
    if isinstance(node, ast.JoinedStr):
        parts = [value.value for value in node.values if isinstance(value, ast.FormattedValue)]
    for part in parts:
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Call):
            yield ast.unparse(part.func).rpartition(".")[2]


def sentences(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the texts of more than one word in an expression or a function, but no docstring."""
    inside: set[ast.AST] = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Expr):  # a docstring
            inside |= {each.value}
        elif isinstance(each, ast.Compare) or is_method(each):  # texts to look for
            inside |= set(ast.walk(each))
        elif each not in inside and isinstance(each, ast.JoinedStr):
            inside |= set(ast.walk(each)) - {each}
            yield each
        elif each not in inside and isinstance(each, ast.Constant) and " " in str(each.value):
            yield each


def is_method(node: ast.AST) -> bool:
    """Return True if a node calls a method of a text."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("startswith", "removeprefix", "removesuffix", "replace", "partition")
    )


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
