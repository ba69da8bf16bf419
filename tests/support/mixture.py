"""Kinds of calls for tests of the ledger: completed, ended by the client, failing, and rejected.

The provider's usage differs from kind to kind, so that no sum is correct by accident.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.support import calls
from tests.support import fake as fp
from tests.support.load import Kind
from tests.support.pace import scaled
from tests.support.servers import Server

INPUT_NANO, OUTPUT_NANO = 1_000, 2_000
"""The price of a token of a fake model, in nano-dollars."""
FIRST_EVENT_TIMEOUT_S = round(scaled(8))
ENV = {
    "SLUICE_FIRST_EVENT_TIMEOUT_S": str(FIRST_EVENT_TIMEOUT_S),
    "SLUICE_RETRIES": "0",  # with retries, the number of attempts would be random
}
OWN_KEY = {"byok_api_key": "my-own"}
LONGER_THAN_A_LOOK_S = 2.0
"""Seconds in which the sweeper notices a disconnected client. It checks once a second."""
VARIANTS = 6
CHAT = "/v1/chat/completions"


def config(base_url: str, *, input_usd: float = 1.0, output_usd: float = 2.0) -> str:
    """Return a sluice.toml with the rows `fake`, `fakechat` (chat only) and `drained`.

    Args:
        base_url: The URL of the fake provider.
        input_usd: The price of the rows' model `m`, in USD per million input tokens.
        output_usd: The price per million output tokens.
    """
    rows = calls.toml_row("fake", base_url)
    rows += calls.toml_row("fakechat", base_url).replace("= true", "= false")
    rows += calls.toml_row("drained", base_url, disconnect="drain")
    price = f"input_per_mtok = {input_usd}\noutput_per_mtok = {output_usd}\n"
    return rows + "".join(
        f'[prices."{row}/m"]\n{price}\n' for row in ("fake", "fakechat", "drained")
    )


def text_with_usage(text: str, usage: tuple[int, int], *, chat: bool = False) -> fp.Step:
    """Return a step that sends a text with the usage so far."""
    [frame] = fp.chunks([text], chat=chat, finish=None)
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return fp.event(frame | {"usage": dict(zip(names, (*usage, sum(usage)), strict=True))})


def stream(usage: tuple[int, int] | None, *, chat: bool = False) -> list[fp.Step]:
    return fp.sse(fp.chunks(["some ", "text"], chat=chat, usage=usage), interval=0.02)


def begun(*steps: fp.Step) -> list[fp.Step]:
    """Return a stream's head, followed by these steps."""
    return [*fp.sse([], done=False, complete=False), *steps]


def good() -> list[Kind]:
    found = []
    for n in range(VARIANTS):
        usage = (5 + n, 3 + 7 * n)
        answer, chat = fp.answer(fp.body("x", usage=usage)), f"chat{n}"
        found += [
            Kind(f"unary{n}", answer),
            Kind(f"stream{n}", stream(usage), stream=True),
            Kind(chat, stream(usage, chat=True), stream=True, model="fakechat/m", weight=5),
            Kind(f"other{n}", answer, key="other", weight=2),
            Kind(f"passed{n}", fp.answer(fp.body("x", chat=True, usage=usage)), chats=True),
            Kind(f"passedstream{n}", stream(usage, chat=True), stream=True, chats=True),
        ]
    return [
        *found,
        Kind("byok", fp.answer(fp.body("x", usage=(11, 13))), more=OWN_KEY),
        Kind("nousage", stream(None), stream=True, exact=False),
        Kind("passednousage", stream(None, chat=True), stream=True, exact=False, chats=True),
        Kind("nousageunary", fp.answer(fp.body("x", usage=None)), exact=False),
    ]


def lasting() -> list[Kind]:
    """Return kinds that complete. Most of these calls are long, so some are always active."""
    pieces = [f"{n} " for n in range(20)]
    long = fp.sse(fp.chunks(pieces, usage=(23, 29)), interval=0.05)
    chat = fp.sse(fp.chunks(pieces, usage=(27, 31), chat=True), interval=0.05)
    return [
        *good(),
        Kind("long", long, stream=True, weight=100),
        Kind("longchat", chat, stream=True, weight=50, chats=True),
    ]


def ended() -> list[Kind]:
    with_usage = begun(text_with_usage("word ", (7, 2)), fp.hold())
    without_usage = begun(calls.EVENT, fp.hold())
    rest = [*(fp.event(frame) for frame in fp.chunks(["!"], usage=(9, 21))), fp.last_chunk()]
    drained = begun(
        calls.EVENT, fp.sleep(LONGER_THAN_A_LOOK_S), *rest[:-1], fp.event("[DONE]"), rest[-1]
    )
    gone = "client_gone"
    chat = begun(text_with_usage("word ", (7, 2), chat=True), fp.hold())
    silent = begun(*map(fp.event, fp.chunks(["word "], chat=True, finish=None)), fp.hold())
    return [
        Kind("chatstop", chat, "stopped", stream=True, act="stop", chats=True),
        Kind(
            *("chatstopnousage", silent, "stopped"),
            stream=True,
            act="stop",
            exact=False,
            chats=True,
        ),
        Kind("chatleave", chat, gone, 499, stream=True, act="leave", chats=True),
        Kind("chatleaveunary", [fp.hold()], gone, 499, act="leave", exact=False, chats=True),
        Kind("stop", with_usage, "stopped", stream=True, act="stop"),
        Kind("stopnousage", without_usage, "stopped", stream=True, act="stop", exact=False),
        Kind("leave", with_usage, gone, 499, stream=True, act="leave"),
        Kind("leavenousage", without_usage, gone, 499, stream=True, act="leave", exact=False),
        Kind("leaveunary", [fp.hold()], gone, 499, act="leave", exact=False),
        Kind("drain", drained, gone, 499, stream=True, act="leave", model="drained/m"),
    ]


def failing() -> list[Kind]:
    """Return the kinds that fail at the provider.

    All except `fallback` have a BYOK key, so their failures open no circuit breaker.
    """
    bad = "provider_error"
    statuses = {400: 400, 401: 403, 404: 404, 429: 429, 500: 502, 503: 502}
    garbage = fp.event(b"data: {nope\n\n")
    text = [fp.event(frame) for frame in fp.chunks(["word "], chat=True, finish=None)]
    found = [
        *(Kind(f"http{n}", fp.error(n), bad, seen, weight=2) for n, seen in statuses.items()),
        Kind("httpstream", fp.error(500), bad, 502, stream=True, weight=3),
        Kind("noanswer", [fp.reset()], bad, 502, weight=3),
        Kind("html", fp.answer(b"<html>no"), bad, 502, weight=3),
        Kind("reset", begun(calls.EVENT, fp.reset()), bad, stream=True, exact=False, weight=3),
        Kind("cut", begun(calls.EVENT, fp.close()), bad, stream=True, exact=False, weight=3),
        Kind("garbage", begun(calls.EVENT, garbage), bad, stream=True, exact=False, weight=3),
        Kind("chat500", fp.error(500), bad, 502, chats=True),
        Kind("chatcut", begun(*text, fp.close()), bad, stream=True, exact=False, chats=True),
        Kind("late", [fp.hold()], "deadline", 504, exact=False, weight=1),
    ]
    fallback = Kind("fallback", attempts=2, more={"fallbacks": ["fakechat/m"]})
    return [*(kind._replace(more=OWN_KEY) for kind in found), fallback]


FALLBACK = {
    "fallback": fp.error(503),
    f"fallback {CHAT}": fp.answer(fp.body("x", chat=True, usage=(17, 19))),
}


def refused() -> list[Kind]:
    return [
        Kind(name, reason=None, status=status, key=key, more=more, weight=2)
        for name, status, key, more in (
            ("nokey", 401, "bad", {}),
            ("noprompt", 400, "main", {"prompt": None}),
            ("badvalue", 400, "main", {"temperature": "hot"}),
            ("noprovider", 404, "main", {"model": "nowhere/m"}),
            ("forbidden", 403, "picky", {}),
            ("broke", 402, "broke", {"max_tokens": 5}),
            ("limited", 429, "limited", {}),
            ("tokenless", 429, "tokenless", {"max_tokens": 50}),
        )
    ]


KEYS: Mapping[str, Mapping[str, Any]] = {
    "main": {},
    "other": {},
    "picky": {"models": ["openai/*"]},
    "broke": {"budget_usd": 0.000001},
    "limited": {"requests_per_minute": 0},
    "tokenless": {"tokens_per_hour": 20},
}


def everything() -> list[Kind]:
    return [*good(), *ended(), *failing(), *refused()]


def add_keys(server: Server) -> dict[str, str]:
    """Add the keys that the kinds use to a server. Return them by name. Their ids are key_NAME."""
    found = {
        name: server.add_key(name, id=f"key_{name}", **{"tier": "unlimited"} | dict(terms))
        for name, terms in KEYS.items()
    }
    return {**found, "bad": "sluice-bad"}
