"""Redaction of what a provider's answer has beside the text, for a caller who asked for it.

- In added fields, the credential that was sent and everything that looks like a key is redacted as
  in errors. In opaque events, which have the text too, only long pieces of the credential are: the
  keys of local engines are often words, and the start of a key is known to all.
- What can't hold either is passed on as it is, after a fast search.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from completion import Added, Batch, Opaque
from concurrency.yielding import Yielder
from keys.redaction import LEAST_PIECE, Secret, mask, may_hold_key
from providers.decoding.added_fields import decode_object

SHORTEST, TEXT_PIECE = 8, 16
"""The least characters of a credential that is redacted in opaque events, and of a piece of it."""


def redacted(batches: Iterator[Batch], credential: Secret | None) -> Iterator[Batch]:
    """Yield the batches, with the Added and opaque events redacted."""
    yielder, encoded = Yielder(), []
    if credential is not None and len(credential.reveal()) >= SHORTEST:
        encoded = [block.encode() for block in blocks_of(credential, TEXT_PIECE)]
    for batch in batches:
        for at, event in enumerate(batch):
            # Comparing classes is several times as fast as isinstance, if they differ.
            if event.__class__ is Added and may_hold_secret(event.fields, credential):
                fields = clean(event.fields, credential, yielder)
                batch[at] = msgspec.structs.replace(event, fields=fields)
            elif event.__class__ is Opaque:
                for block in encoded:  # without a call, because most events pay for it
                    if block in event.data:
                        value = decode_object(event.data)
                        cleaned = clean(value, credential, yielder, in_text=True)
                        if cleaned != value:
                            data = msgspec.json.encode(cleaned)
                            batch[at] = msgspec.structs.replace(event, data=data)
                        break
        yield batch


def may_hold_secret(fields: dict[str, Any], credential: Secret | None) -> bool:
    """Return False if no text in the fields has a piece of the credential or looks like a key."""
    text = msgspec.json.encode(fields).decode()
    return may_hold_key(text) or has_piece(text, credential)


def has_piece(text: str, credential: Secret | None) -> bool:
    """Return False if the text has no piece of the credential."""
    return any(block in text for block in blocks_of(credential, LEAST_PIECE))


def blocks_of(credential: Secret | None, least: int) -> list[str]:
    """Return the blocks of the credential of which each piece of `least` characters has one.

    Each piece covers one of the blocks of half its length.
    """
    secret, size = credential.reveal() if credential else "", least // 2
    blocks = [secret[at : at + size] for at in range(0, len(secret) - size + 1, size)]
    return blocks or [secret] * bool(secret)


def clean(value: Any, credential: Secret | None, yielder: Yielder, *, in_text: bool = False) -> Any:
    """Return a value with the secrets in its texts and names redacted.

    in_text: whether the texts are the model's own, so that only long pieces of the credential are
        redacted.
    """
    if isinstance(value, str):
        yielder.yield_if_due()
        if in_text:
            return credential.hidden_in(value, TEXT_PIECE) if credential else value
        return mask(credential.hidden_in(value) if credential else value)
    if isinstance(value, dict):
        return {
            clean(name, credential, yielder, in_text=in_text): clean(
                item, credential, yielder, in_text=in_text
            )
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [clean(item, credential, yielder, in_text=in_text) for item in value]
    return value
