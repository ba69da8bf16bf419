"""What is seen of Sluice: log lines, metrics, traces, and the records of ended calls."""
