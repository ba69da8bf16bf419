"""Log lines, metrics, traces, and the records of calls that have ended."""
