"""The parameters that the embedded model lacks. It has no wire format to encode or decode."""

from __future__ import annotations

from typing import Final

from providers.base import Target

UNSUPPORTED: Final = frozenset(
    {"suffix", "token_ids", "logit_bias", "echo_logprobs", "extra", "openai_extra"}
)
"""echo_logprobs is among them because the model gives an unknown word no probability at all."""


def unsupported(target: Target) -> frozenset[str]:
    """Return the parameters that the target lacks; see base.Dialect."""
    return UNSUPPORTED.union(target.provider.cannot)
