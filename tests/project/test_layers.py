"""Tests of the code's structure: allowed imports, and the length of modules and functions.

LONG_MODULES and LONG_FUNCTIONS say why something long is in one place.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.support.paths import ROOT

MOST_MODULE_LINES = 300
MOST_FUNCTION_LINES = 40
"""Docstrings don't count: stating what a function raises must not make it too long."""

LAYERS = (
    *("completion", "errors", "config_file", "config", "concurrency", "keys", "server", "cluster"),
    "providers",
    *("ledger", "quota", "streams", "routing", "gateway", "telemetry", "auth", "endpoints", "cli"),
    *("app", "wsgi"),
)
"""The packages and modules of the root, from the bottom to the top. Each may import only those
below it."""

NETWORK = tuple(
    f"providers.transport.{name}" for name in ("adapter", "exchange", "pool", "reasons")
)
"""The modules that talk to providers, and the one that explains their exceptions."""

DIALECTS = frozenset(path.parent.name for path in (ROOT / "providers").glob("*/dialect.py"))
"""The packages in providers/ that are dialects."""

LONG_MODULES: dict[str, str] = {
    "cli.keys": "the commands of one group, with their options",
    "completion": "the vocabulary, type after type",
    "config": "all settings, with a field and a variable for each",
    "endpoints.native": "one whole API",
    "errors": "the tree of errors, class after class",
    "providers.hosts": "the rows of all hosts",
    "streams.stream": "one active call, with all that may end it",
}
LONG_FUNCTIONS: dict[str, str] = {
    "endpoints.openapi.schemas.completions": "one schema",
    "streams.stream.Stream.__init__": "all attributes, in groups",
}


def path_of(module: str) -> Path:
    plain = ROOT / (module.replace(".", "/") + ".py")
    return plain if plain.exists() else ROOT / module.replace(".", "/") / "__init__.py"


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def is_ours(path: Path) -> bool:
    """Return True if a folder or file of the root is application code."""
    if path.is_dir():
        return (path / "__init__.py").exists() and path.name not in ("tests", "bench")
    return path.suffix == ".py" and "." not in path.stem  # not gunicorn.conf.py


TOP = [path for path in ROOT.iterdir() if is_ours(path)]
FILES = [file for path in TOP for file in (path.rglob("*.py") if path.is_dir() else [path])]
MODULES = sorted(name_of(path) for path in FILES)


def package_of(module: str) -> str:
    return module.partition(".")[0]


def dialect_of(module: str) -> str | None:
    package, _, rest = module.partition(".")
    name = rest.partition(".")[0]
    return name if package == "providers" and name in DIALECTS else None


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


def running(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a tree, except those that only the type checker sees."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from running(other)
        else:
            yield from running(child)


def imported(tree: ast.Module) -> set[str]:
    """Return the full names of all imported modules.

    `from a import b` counts as a.b if that is a module of Sluice, and else as a.
    """
    found: set[str] = set()
    for node in running(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports must be absolute"
            base = node.module or ""
            inner = {f"{base}.{alias.name}" for alias in node.names} & set(MODULES)
            found |= inner
            if len(inner) < len(node.names):
                found.add(base)
    return found


@cache
def imports(module: str) -> frozenset[str]:
    return frozenset(imported(tree_of(module)))


def ours(module: str) -> set[str]:
    return set(imports(module)) & set(MODULES)


def packages(module: str) -> set[str]:
    return {name.partition(".")[0] for name in imports(module)}


def names_in(tree: ast.AST) -> set[str]:
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def lines_of(node: ast.AST, count: int) -> int:
    """Return `count` without the lines of the docstrings in a tree, those of attributes too."""
    return count - sum(
        (inner.end_lineno or 0) - inner.lineno + 1
        for inner in ast.walk(node)
        if isinstance(inner, ast.Expr)
        and isinstance(inner.value, ast.Constant)
        and isinstance(inner.value.value, str)
    )


def functions(module: str) -> dict[str, int]:
    """Return the number of lines of each function, by its full name."""
    found: dict[str, int] = {}

    def visit(node: ast.AST, place: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = place
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{place}.{child.name}"
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                found[inner] = lines_of(child, (child.end_lineno or 0) - child.lineno + 1)
            visit(child, inner)

    visit(tree_of(module), module)
    return found


def found(by_module: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return only the modules with a non-empty set."""
    return {module: names for module, names in by_module.items() if names}


# Layers


def test_every_package_and_root_module_has_a_layer() -> None:
    assert sorted(LAYERS) == sorted(path.stem for path in TOP)


def test_no_package_imports_from_a_higher_layer() -> None:
    height = {name: number for number, name in enumerate(LAYERS)}
    upward = {
        module: {n for n in ours(module) if height[package_of(n)] > height[package_of(module)]}
        for module in MODULES
    }
    assert found(upward) == {}


def test_imports_have_no_cycle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for name in sorted(ours(module) - {module}):
                visit(name, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


# Forbidden imports and names


def test_below_the_endpoints_only_auth_imports_flask() -> None:
    above = {"auth", "endpoints", "cli", "app", "wsgi"}
    web = {
        module: {name for name in packages(module) if name.startswith(("flask", "werkzeug"))}
        for module in MODULES
        if package_of(module) not in above
    }
    assert found(web) == {}


def test_only_the_transport_touches_the_network() -> None:
    clients = {"requests", "urllib3", "http", "httpx", "aiohttp", "ssl"}
    modules = {"urllib", "urllib.request"}
    network = {module: packages(module) & clients | modules & imports(module) for module in MODULES}
    assert set(found(network)) == set(NETWORK)


def test_only_the_transport_of_the_providers_opens_sockets() -> None:
    # sigv4 is an exception: botocore may fetch credentials over the network.
    sockets = {"socket", "select", "selectors", "asyncio"}
    found_sockets = {
        module: packages(module) & sockets
        for module in MODULES
        if package_of(module) == "providers" and not module.startswith("providers.transport")
    }
    assert found(found_sockets) == {}
    assert [module for module in MODULES if "botocore" in packages(module)] == [
        "providers.bedrock.sigv4"
    ]


def test_only_config_sees_the_environment() -> None:
    names = {"os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv"}
    assert set(found({module: names_in(tree_of(module)) & names for module in MODULES})) == {
        "config"
    }
    assert [
        module
        for module in MODULES
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.ImportFrom) and node.module == "os"
    ] == [], "import os itself, or this test can't find uses of the environment"


def test_only_two_modules_of_concurrency_import_gevent() -> None:
    found = [module for module in MODULES if "gevent" in packages(module)]
    assert found == ["concurrency.greenlet_event", "concurrency.native"]


def test_no_endpoint_imports_a_dialect() -> None:
    allowed = {"providers.base"}
    known = {
        module: {name for name in ours(module) if package_of(name) == "providers"} - allowed
        for module in MODULES
        if package_of(module) == "endpoints"
    }
    assert found(known) == {}


def test_no_dialect_imports_another_dialect() -> None:
    others = {
        module: {
            name for name in ours(module) if dialect_of(name) not in (None, dialect_of(module))
        }
        for module in MODULES
        if package_of(module) == "providers"
    }
    assert found(others) == {}


def test_a_dialect_imports_only_vocabulary_and_shared_parts_of_the_providers() -> None:
    parts = {f"providers.{name}" for name in ("base", "model_entries", "request_parts")}
    shared = {"completion", "errors"} | parts
    imported_by = {
        module: {
            name
            for name in ours(module)
            if name not in shared
            and not name.startswith("providers.decoding.")
            and dialect_of(name) != dialect_of(module)
        }
        for module in MODULES
        if dialect_of(module)
    }
    assert found(imported_by) == {}


def test_the_decoders_of_the_providers_know_no_provider() -> None:
    known = {
        module: {
            name
            for name in ours(module)
            if package_of(name) == "providers" and not name.startswith("providers.decoding")
        }
        for module in MODULES
        if module.startswith("providers.decoding")
    }
    assert found(known) == {}


def test_wire_schemas_are_apart_from_their_translation() -> None:
    # A schemas module imports no events, and no other module of a dialect declares a Struct.
    schemas = [m for m in MODULES if dialect_of(m) and m.endswith(".schemas")]
    assert len(schemas) == len(DIALECTS) - 1, "every dialect except local has schemas"
    translating = {
        m: ours(m) & {"completion", "providers.base", "providers.request_parts"} for m in schemas
    }
    assert found(translating) == {}
    declared = {
        module: {
            node.name
            for node in ast.walk(tree_of(module))
            if isinstance(node, ast.ClassDef)
            and any(ast.unparse(base).endswith("Struct") for base in node.bases)
        }
        for module in MODULES
        if dialect_of(module) and module not in schemas
    }
    assert found(declared) == {}


def test_every_class_and_type_has_a_unique_name() -> None:
    # Only wire schemas may repeat a name, because they have the names that hosts use.
    modules: dict[str, set[str]] = {}
    for module in MODULES:
        if module.endswith(".schemas"):
            continue
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.ClassDef):
                modules.setdefault(node.name, set()).add(module)
            elif isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
                modules.setdefault(ast.unparse(node.target), set()).add(module)
    assert {name: found for name, found in modules.items() if len(found) > 1} == {}


def test_a_reload_forgets_every_package_and_module_of_sluice() -> None:
    tree = ast.parse((ROOT / "gunicorn.conf.py").read_text(encoding="utf-8"))
    [names] = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "OURS"
    ]
    assert set(eval(ast.unparse(names))) == set(LAYERS)


def test_the_packages_of_the_providers_have_no_code_in_init() -> None:
    with_code = [
        module
        for module in MODULES
        if package_of(module) == "providers"
        and path_of(module).name == "__init__.py"
        and len(tree_of(module).body) > 1
    ]
    assert with_code == []


def test_the_vocabulary_imports_only_msgspec_and_the_standard_library() -> None:
    allowed = {*sys.stdlib_module_names, "msgspec", "completion", "errors"}
    vocabulary = ("completion", "errors")
    assert found({module: packages(module) - allowed for module in vocabulary}) == {}


def test_no_module_shadows_the_standard_library_or_a_package() -> None:
    root = {module for module in MODULES if "." not in module}
    assert root & set(sys.stdlib_module_names) == set()
    assert root & set(packages_distributions()) == set()


def test_gunicorn_conf_imports_only_the_standard_library_and_config() -> None:
    # gunicorn loads this file in the master, before gevent patches the worker.
    tree = ast.parse((ROOT / "gunicorn.conf.py").read_text(encoding="utf-8"))
    names = {name.partition(".")[0] for name in imported(tree)}
    assert names - set(sys.stdlib_module_names) == {"config"}  # and config_file.py through it
    assert not names_in(tree) & {"os.environ", "os.getenv"}


# Lengths


def test_no_unlisted_module_exceeds_the_line_limit() -> None:
    lines = {
        module: lines_of(tree_of(module), len(path_of(module).read_text("utf-8").splitlines()))
        for module in MODULES
    }
    long = {module: count for module, count in lines.items() if count > MOST_MODULE_LINES}
    assert {m: n for m, n in long.items() if m not in LONG_MODULES} == {}
    assert set(LONG_MODULES) - set(long) == set(), "no longer too long: remove it from the list"


def test_no_unlisted_function_exceeds_the_line_limit() -> None:
    lines = {name: count for module in MODULES for name, count in functions(module).items()}
    long = {name: count for name, count in lines.items() if count > MOST_FUNCTION_LINES}
    assert {name: count for name, count in long.items() if name not in LONG_FUNCTIONS} == {}
    assert set(LONG_FUNCTIONS) - set(long) == set(), "no longer too long: remove it from the list"


def test_every_module_has_a_docstring() -> None:
    assert [module for module in MODULES if not ast.get_docstring(tree_of(module))] == []


# Tests of these helpers


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import os.path", {"os.path"}),
        ("from providers import hosts", {"providers.hosts"}),
        ("from providers import hosts, dialect", {"providers.hosts", "providers"}),
        ("def f():\n    from config import Settings", {"config"}),
        ("if TYPE_CHECKING:\n    import gevent\nelse:\n    import json", {"json"}),
        ("if typing.TYPE_CHECKING:\n    import gevent", set()),
        ("try:\n    import gevent\nexcept ImportError:\n    pass", {"gevent"}),
    ],
)
def test_imported_finds_nested_imports_and_skips_type_checking(
    source: str, names: set[str]
) -> None:
    assert imported(ast.parse(source)) == names
