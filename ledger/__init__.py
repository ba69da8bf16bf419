"""What was used: one row for each accepted call, on SQLite or Postgres, and its price."""
