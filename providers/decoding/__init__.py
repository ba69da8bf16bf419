"""Decoders that dialects share: they are pure, and know no provider."""
