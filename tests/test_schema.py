"""schema.py: what turns a version's tables into the next one's."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text

import schema

OLD = """CREATE TABLE requests (id TEXT PRIMARY KEY, attempts INTEGER NOT NULL) WITHOUT ROWID"""


@pytest.mark.parametrize("version", [1, 2])
def test_a_ledger_of_version_1_gets_its_tries(tmp_path: Path, version: int) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'old.db'}")
    with engine.begin() as connection:
        connection.execute(text(OLD))
        connection.execute(text("INSERT INTO requests VALUES ('a', 1)"))
        connection.execute(text("CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)"))
        connection.execute(text("INSERT INTO facts VALUES ('schema', '1')"))
    for _ in range(version):  # a second start finds it done
        with engine.begin() as connection:
            schema.migrate(connection)
    with engine.begin() as connection:
        names = [column["name"] for column in inspect(connection).get_columns("requests")]
        assert names == ["id", "attempts", "tries"]
        assert connection.execute(text("SELECT * FROM requests")).all() == [("a", 1, None)]
        found = connection.execute(text("SELECT value FROM facts")).scalar_one()
        assert int(found) == schema.VERSION
    engine.dispose()
