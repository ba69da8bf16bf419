"""The path of a call: admit it, choose targets, make attempts, relay the answer, and settle."""
