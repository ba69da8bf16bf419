"""Helpers of the tests: servers, clients, fake hosts, and what must hold of a ledger."""
