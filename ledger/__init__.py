"""The usage ledger: a row for each accepted call, on SQLite or Postgres, and model prices."""
