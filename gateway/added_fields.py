"""Redaction of the fields that a provider adds to its answer for a caller who asked for them.

- The credential that was sent, and everything that looks like a key, is redacted as in errors.
- Fields that can't hold either are passed on as they are, after a fast search.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from completion import Added, Batch
from concurrency.yielding import Yielder
from keys.redaction import LEAST_PIECE, Secret, mask, may_hold_key


def redacted(batches: Iterator[Batch], credential: Secret | None) -> Iterator[Batch]:
    """Yield the batches, with the Added events redacted."""
    yielder = Yielder()
    for batch in batches:
        for at, event in enumerate(batch):
            # Comparing classes is several times as fast as isinstance, if they differ.
            if event.__class__ is Added and may_hold_secret(event.fields, credential):
                fields = clean(event.fields, credential, yielder)
                batch[at] = msgspec.structs.replace(event, fields=fields)
        yield batch


def may_hold_secret(fields: dict[str, Any], credential: Secret | None) -> bool:
    """Return False if no text in the fields has a piece of the credential or looks like a key.

    Each piece of LEAST_PIECE characters covers one of the credential's blocks of half that length.
    """
    text = msgspec.json.encode(fields).decode()
    secret, size = credential.reveal() if credential else "", LEAST_PIECE // 2
    blocks = [secret[at : at + size] for at in range(0, len(secret) - size + 1, size)]
    return may_hold_key(text) or any(block in text for block in blocks or filter(None, [secret]))


def clean(value: Any, credential: Secret | None, yielder: Yielder) -> Any:
    """Return a value with the secrets in its texts and names redacted."""
    if isinstance(value, str):
        yielder.yield_if_due()
        return mask(credential.hidden_in(value) if credential else value)
    if isinstance(value, dict):
        return {
            clean(name, credential, yielder): clean(item, credential, yielder)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [clean(item, credential, yielder) for item in value]
    return value
