"""The dialect of the embedded model: only its capabilities, because it has no wire format."""

from __future__ import annotations

from typing import Final

from providers.base import Target

UNSUPPORTED: Final = frozenset(
    {"suffix", "token_ids", "logit_bias", "echo_logprobs", "extra", "openai_extra"}
)
"""The parameters that the model lacks. An echoed prompt can't have log probabilities, because a
word that the model doesn't know has no probability."""


def unsupported(target: Target) -> frozenset[str]:
    return UNSUPPORTED.union(target.provider.cannot)
