"""Statements that are compiled once and then executed on the driver's own cursor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import Connection, Dialect

from ledger.database import directly


class Statement(NamedTuple):
    make: Callable[[str], Any]
    """A function that returns the statement for a dialect."""
    names: tuple[str, ...]
    """The names of the values in a row of parameters. The statement may use only some of them."""


def execute(connection: Connection, statement: Statement, rows: Iterable[tuple[Any, ...]]) -> int:
    """Execute a statement for each row of parameters and return the number of affected rows."""
    query, parameters = prepared(statement, connection.dialect)
    several = list(map(parameters, rows))
    return directly(connection, query, several=several).rowcount if several else 0


@cache
def prepared(
    statement: Statement, dialect: Dialect
) -> tuple[str, Callable[[tuple[Any, ...]], Any]]:
    """Return a statement's SQL, and a function that turns a row into the parameters.

    Cached, because compiling a statement costs more than executing it.
    """
    compiled = statement.make(dialect.name).compile(dialect=dialect)
    place = statement.names.index
    if compiled.positiontup:
        return str(compiled), itemgetter(*map(place, compiled.positiontup))
    wanted = [(name, place(name)) for name in compiled.params]
    return str(compiled), lambda row: {name: row[number] for name, number in wanted}


def inserter(dialect: str) -> Any:
    """Return SQLAlchemy's INSERT for the dialect, which supports ON CONFLICT.

    Imported here so that only the dialect in use is loaded.
    """
    return import_module(f"sqlalchemy.dialects.{dialect}").insert
