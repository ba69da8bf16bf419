"""The path of a call: admit, choose targets, make attempts, relay, settle."""
