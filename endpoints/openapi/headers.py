"""The headers of requests and responses in the OpenAPI document."""

from __future__ import annotations

from config import TIMEOUT_FIELDS
from quota.quota import RATE_PARTS

HEADERS = {
    "X-Request-ID": "The request's id, sent by the client or generated. The log contains it.",
    "X-Stream-ID": "The id by which to stop the call.",
    "X-Sluice-Attempts": "The number of attempts at providers.",
    "X-Sluice-Dropped": "The parameters that the target ignores.",
    "X-Sluice-Resumable": "1: the stream outlives its connection. 0: it was to, but can't.",
    "Location": "Where to follow the call.",
    "X-RateLimit-Bypass": "The call used the caller's own provider key.",
    "Retry-After": "How long to wait, in whole seconds, at least 1.",
    "WWW-Authenticate": "How to authenticate.",
    "Allow": "The methods that the path allows.",
    "ETag": "Changes when the key is changed. Send it as If-Match.",
    "Content-Disposition": "The name of the file.",
    "X-Sluice-Instance": "The name of this Sluice, and those of others whose models are listed.",
} | {
    f"x-ratelimit-{part}-{kind}": f"The key's limit on {kind}: {part}. Only for keys with a limit."
    for kind in ("requests", "tokens")
    for part in RATE_PARTS
}
LIMITS = tuple(name for name in HEADERS if name.startswith("x-ratelimit-"))
SECONDS = rf" *(({'|'.join(TIMEOUT_FIELDS)}) *= *)?[0-9]{{1,9}}([.][0-9]{{0,9}})? *"
SENT = {
    "X-Request-ID": "An id for the request. It must look like a stream_id, or it is replaced.",
    "X-Stream-ID": "The stream_id, if the body has none.",
    "X-Provider-API-Key": "The byok_api_key, if the body has none.",
    "X-Sluice-Strict": "1: reject parameters that the target would ignore.",
    "X-Sluice-Continue": "1: if a stream breaks off, continue it from another target.",
    "X-Sluice-Affinity": "Calls with the same text go to the same replica of a provider, if there "
    "are several. Without it, the start of the prompt decides.",
    "X-Sluice-Resumable": "1 or 0: resumable, if the body has none.",
    "X-Sluice-Timeout": "Seconds for the whole call (30), or for some of its "
    "phases (first_event=5, idle=2.5).",
}
"""The request headers of a completion. Only X-Sluice-Timeout has a pattern: a header that can
replace a field may hold anything if the body has that field."""
PATTERNS = {"X-Sluice-Timeout": {"pattern": f"^( *|{SECONDS}(,{SECONDS})*)$"}}
