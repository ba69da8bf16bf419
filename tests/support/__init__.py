"""Helpers for tests: servers, clients, fake hosts, and checks of a ledger."""
