"""routing.py: where a name leads, what a target can honour, and what its failure is told as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import providers
import routing
from completion import CompletionRequest, Secret
from config import ConfigError, Settings
from errors import (
    ByokRejected,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    ProviderNotFound,
    RateLimited,
    RequestTooLarge,
    SluiceError,
    UnsupportedParameter,
    UpstreamError,
    UpstreamTimeout,
)
from providers.base import Target
from routing import Candidate, Route, Router, candidates, fit, public_error, retryable, wanted

ROWS: dict[str, dict[str, Any]] = {
    "sim": {"base_url": "http://127.0.0.1:1/v1", "completions": True},
    "poor": {
        "base_url": "http://127.0.0.1:1/v1",
        "completions": True,
        "cannot": ["seed", "temperature", "logit_bias", "user", "echo", "prompt_list", "suffix"],
    },
    "locked": {"base_url": "http://127.0.0.1:1/v1", "api_key_env": "LOCKED_KEY"},
}


def router(
    environ: Mapping[str, str] | None = None,
    aliases: Mapping[str, Any] | None = None,
    default: str = "local/pydoc",
) -> Router:
    return Router(
        Settings(
            providers=ROWS, environ=environ or {}, aliases=aliases or {}, default_model=default
        )
    )


ROUTER = router()


def names(found: list[Target]) -> list[str]:
    return [target.name for target in found]


def a_target(provider: str = "sim", *, key: str | None = None, byok: bool = False) -> Target:
    row = providers.rows(ROWS, {})[provider]
    return Target(row, "m-1", Secret(key) if key else None, byok)


def a_request(**fields: Any) -> CompletionRequest:
    return CompletionRequest(**{"prompts": ("Hi",), **fields})


# Names


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        (Route(), ["local/pydoc"]),
        (Route(model="sim/m"), ["sim/m"]),
        (Route(model="sim/a/b"), ["sim/a/b"]),
        (Route(model="m", provider="sim"), ["sim/m"]),
        (Route(model="sim/m", provider="sim"), ["sim/m"]),
        (Route(model="a/b", provider="sim"), ["sim/a/b"]),
        (Route(model="sim/sim/m", provider="sim"), ["sim/sim/m"]),
        (Route(model="fast"), ["sim/one", "poor/two"]),
        (Route(model="single"), ["sim/one"]),
        (Route(model="fast", provider="sim"), ["sim/fast"]),
        (Route(model="sim/m", fallbacks=("poor/m", "fast")),
         ["sim/m", "poor/m", "sim/one", "poor/two"]),
        (Route(model="sim/m", fallbacks=("sim/m", "sim/m")), ["sim/m"]),
        (Route(model="locked/m", fallbacks=("sim/m",)), ["sim/m"]),
        (Route(model="sim/m", fallbacks=("locked/m",)), ["sim/m"]),
    ],
)  # fmt: skip
def test_a_name_leads_to_its_targets_in_order(route: Route, expected: list[str]) -> None:
    aliases = {"fast": ["sim/one", "poor/two"], "single": "sim/one"}
    assert names(router(aliases=aliases).targets(route)) == expected


def test_the_default_may_be_an_alias() -> None:
    found = router(aliases={"fast": ["sim/one"]}, default="fast").targets(Route())
    assert names(found) == ["sim/one"]


@pytest.mark.parametrize(
    ("route", "kind", "says"),
    [
        (Route(model="gpt-4o"), ModelNotFound, "Model 'gpt-4o' was not found."),
        (Route(model="sim/"), ModelNotFound, "Model 'sim/' was not found."),
        (Route(model="/m"), ProviderNotFound, "Provider '' is not known here."),
        (Route(model="smi/m"), ProviderNotFound, "'smi' is not known here. Did you mean sim?"),
        (Route(model="zzzzz/m"), ProviderNotFound, "Provider 'zzzzz' is not known here."),
        (Route(model="m", provider="smi"), ProviderNotFound, "Did you mean sim?"),
        (Route(model="locked/m"), ProviderNotFound, "its operator sets LOCKED_KEY"),
        (Route(model="sim/m", fallbacks=("nobody/m",)), ProviderNotFound, "'nobody'"),
        (Route(model="x" * 500), ModelNotFound, f"'{'x' * 100}...'"),
    ],
)
def test_a_name_that_leads_nowhere_is_told_as_what_is_missing(
    route: Route, kind: type[SluiceError], says: str
) -> None:
    with pytest.raises(kind) as caught:
        router().targets(route)
    message = caught.value.message
    assert says in message
    other = "provider" if kind is ModelNotFound else "model"
    assert other not in message.lower()
    assert len(message) < 300


@given(st.text(max_size=30), st.none() | st.sampled_from(["sim", "local", "locked", "nobody"]))
def test_any_name_leads_somewhere_or_is_not_found(model: str, provider: str | None) -> None:
    try:
        found = ROUTER.targets(Route(model=model, provider=provider))
    except (ModelNotFound, ProviderNotFound):
        return
    assert all(target.provider.name in ROUTER.providers for target in found)


def test_the_operator_s_key_goes_to_its_provider_alone() -> None:
    found = router({"LOCKED_KEY": "sk-1"}).targets(
        Route(model="locked/m", fallbacks=("sim/m", "local/pydoc"))
    )
    assert [target.credential for target in found] == [Secret("sk-1"), None, None]
    assert not any(target.byok for target in found)


@pytest.mark.parametrize("environ", [{}, {"LOCKED_KEY": "sk-operator"}])
def test_the_caller_s_own_key_takes_the_operator_s_place(environ: dict[str, str]) -> None:
    (found,) = router(environ).targets(Route(model="locked/m", byok_api_key=Secret("sk-own")))
    assert found.credential == Secret("sk-own")
    assert found.byok


@pytest.mark.parametrize(
    ("environ", "provider", "enabled"),
    [
        ({}, "local", True),
        ({}, "locked", False),
        ({"LOCKED_KEY": ""}, "locked", False),
        ({"LOCKED_KEY": "k"}, "locked", True),
    ],
)
def test_a_provider_is_enabled_when_it_needs_no_key_or_has_one(
    environ: dict[str, str], provider: str, enabled: bool
) -> None:
    found = router(environ)
    assert found.enabled(found.provider(provider)) is enabled


@pytest.mark.parametrize(
    ("aliases", "default", "says"),
    [
        ({"fast": []}, "local/pydoc", "[aliases]: fast takes a model or a list of models"),
        ({"fast": [1]}, "local/pydoc", "[aliases]: fast takes a model"),
        ({"fast": 1}, "local/pydoc", "[aliases]: fast takes a model"),
        ({"fast": "nobody/m"}, "local/pydoc", "fast: 'nobody/m' is no model of this server"),
        ({"fast": "sim/"}, "local/pydoc", "fast: 'sim/' is no model"),
        ({"fast": ["sim/m"], "best": "fast"}, "local/pydoc", "best: 'fast' is no model"),
        ({}, "gpt-4o", "SLUICE_DEFAULT_MODEL: 'gpt-4o' is no model"),
        ({"fast": ["sim/m"]}, "slow", "SLUICE_DEFAULT_MODEL: 'slow' is no model"),
    ],
)
def test_an_alias_that_leads_nowhere_stops_the_start(
    aliases: dict[str, Any], default: str, says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        router(aliases=aliases, default=default)
    assert says in str(caught.value)


def test_an_alias_may_put_fallbacks_behind_a_model_s_own_name() -> None:
    found = router(aliases={"sim/m": ["sim/m", "poor/m"]}).targets(Route(model="sim/m"))
    assert names(found) == ["sim/m", "poor/m"]


def test_the_caller_s_own_key_goes_to_one_provider_alone() -> None:
    route = Route(model="locked/m", fallbacks=("sim/m",), byok_api_key=Secret("sk-own"))
    found = router().targets(route)
    assert [t.name for t in found if t.credential == Secret("sk-own")] == ["locked/m"]


def test_a_provider_s_name_is_no_model_of_it() -> None:
    with pytest.raises(ModelNotFound):
        router().targets(Route(model="sim/", provider="sim"))


# Parameters


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, set()),
        ({"stream": True}, set()),
        ({"extra": {"top_k": 1}, "openai_extra": {"x": 1}}, {"extra", "openai_extra"}),
        ({"max_tokens": 1, "temperature": 0.5, "top_p": 0.5}, {"max_tokens", "temperature",
                                                               "top_p"}),
        ({"stop": ("a",), "seed": 7, "n": 2}, {"stop", "seed", "n"}),
        ({"logprobs": 0}, {"logprobs"}),
        ({"logprobs": 2, "echo": True}, {"logprobs", "echo", "echo_logprobs"}),
        ({"echo": True}, {"echo"}),
        ({"logit_bias": {"5": 1.0}, "user": "u"}, {"logit_bias", "user"}),
        ({"prompts": ((1, 2),)}, {"token_ids"}),
        ({"prompts": ("a", "b")}, {"prompt_list"}),
        ({"prompts": ("a", (1,))}, {"prompt_list", "token_ids"}),
    ],
)  # fmt: skip
def test_what_a_request_asks_for(fields: dict[str, Any], expected: set[str]) -> None:
    assert wanted(a_request(**fields)) == expected


@pytest.mark.parametrize("field", ["seed", "temperature"])
def test_zero_is_asked_for(field: str) -> None:
    assert wanted(a_request(**{field: 0})) == {field}


@pytest.mark.parametrize(
    ("fields", "candidate"),
    [
        ({}, {}),
        ({"seed": 7}, {"dropped": ("seed",)}),
        ({"user": "u", "seed": 7, "logit_bias": {"5": 1.0}, "max_tokens": 3},
         {"dropped": ("logit_bias", "seed", "user")}),
        ({"echo": True}, {"echo": True}),
        ({"prompts": ("a", "b")}, {"split": True}),
        ({"prompts": ("a", "b"), "echo": True, "seed": 7},
         {"split": True, "echo": True, "dropped": ("seed",)}),
    ],
)  # fmt: skip
def test_what_a_poor_target_lacks_is_dropped_by_name_or_emulated(
    fields: dict[str, Any], candidate: dict[str, Any]
) -> None:
    request, target = a_request(**fields), a_target("poor")
    found = fit(request, target, strict=False)
    gone = {*candidate.get("dropped", ()), *(["echo"] if candidate.get("echo") else [])}
    kept = a_request(**{name: value for name, value in fields.items() if name not in gone})
    assert found == Candidate(target, kept, **candidate)


@pytest.mark.parametrize(
    ("fields", "strict", "param", "says"),
    [
        ({"suffix": "s"}, False, "suffix", "suffix can't be had from poor/m-1."),
        ({"seed": 7}, True, "seed", "seed can't be had from poor/m-1."),
        ({"user": "u", "seed": 7}, True, "seed", "seed can't be had"),
        ({"seed": 7, "suffix": "s"}, True, "suffix", "suffix can't be had"),
    ],
)
def test_what_would_change_the_result_is_refused_and_in_strict_mode_a_hint_too(
    fields: dict[str, Any], strict: bool, param: str, says: str
) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        fit(a_request(**fields), a_target("poor"), strict=strict)
    assert says in caught.value.message
    assert caught.value.param == param
    assert caught.value.details == {"parameter": param, "target": "poor/m-1"}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prompts": ((1, 2),)}, "A prompt of token ids can't be had from"),
        ({"echo": True, "logprobs": 1}, "echo together with logprobs can't be had from"),
    ],
)
def test_what_has_no_name_of_its_own_is_described(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        fit(a_request(**fields), a_target("local"), strict=False)
    assert caught.value.message.startswith(says)


def test_targets_that_can_t_honour_a_request_are_skipped() -> None:
    request, poor, rich = a_request(suffix="s"), a_target("poor"), a_target("sim")
    assert [c.target for c in candidates(request, [poor, rich, poor], strict=False)] == [rich]


def test_a_request_that_none_can_honour_is_refused_in_the_words_of_the_first() -> None:
    first, second = a_target("poor"), Target(a_target("poor").provider, "m-2")
    with pytest.raises(UnsupportedParameter, match="poor/m-1"):
        candidates(a_request(suffix="s"), [first, second], strict=False)


# Failures


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *((UpstreamError("", upstream_status=status), True)
          for status in (None, 408, 409, 425, 429, 500, 502, 503, 504, 529)),
        *((UpstreamError("", upstream_status=status), False)
          for status in (400, 401, 402, 403, 404, 413, 422, 501)),
        *((UpstreamTimeout(phase, 1), True) for phase in ("connect", "first_event", "idle")),
        (InvalidRequest(""), False),
        (InternalError(), False),
    ],
)  # fmt: skip
def test_another_target_is_tried_where_it_may_do_better(error: SluiceError, expected: bool) -> None:
    assert retryable(error) is expected


NO_RETRY = {"x-should-retry": "false"}
RETRY_IN_5 = {"Retry-After": "5"}


@pytest.mark.parametrize(
    ("failure", "byok", "kind", "headers", "says"),
    [
        ({"upstream_status": 400}, False, InvalidRequest, {}, "sim/m-1 refused the request."),
        ({"upstream_status": 422, "upstream_message": "n is odd"}, False, InvalidRequest, {},
         "sim/m-1 refused the request: n is odd"),
        ({"upstream_status": 400, "upstream_message": "Validation failed"}, False, InvalidRequest,
         {}, "sim/m-1 refused the request."),
        ({"upstream_status": 413}, False, RequestTooLarge, {}, "sim/m-1 refused the request."),
        ({"upstream_status": 401}, False, UpstreamError, NO_RETRY,
         "sim refused this server's key for it."),
        ({"upstream_status": 403}, False, UpstreamError, NO_RETRY, "sim refused this server's key"),
        ({"upstream_status": 401}, True, ByokRejected, {}, "sim refused your own key"),
        ({"upstream_status": 403}, True, ByokRejected, {}, "sim refused your own key"),
        ({"upstream_status": 402}, False, UpstreamError, NO_RETRY, "sim has no credit left."),
        ({"upstream_status": 429, "upstream_code": "insufficient_quota"}, False, UpstreamError,
         NO_RETRY, "sim has no credit left."),
        ({"upstream_status": 404, "upstream_message": "provider says no"}, False, ModelNotFound,
         {}, "Model 'sim/m-1' was not found."),
        ({"upstream_status": 429}, False, RateLimited, RETRY_IN_5, "Try again in 5 s."),
        ({"upstream_status": 429, "retry_after": 90}, False, RateLimited,
         {"Retry-After": "90", **NO_RETRY}, "Try again in 90 s."),
        ({"upstream_status": 429, "retry_after": 0.2}, False, RateLimited, {"Retry-After": "1"},
         "Try again in 1 s."),
        ({"upstream_status": 500}, False, UpstreamError, {}, "It broke."),
        ({"upstream_status": None}, False, UpstreamError, {}, "It broke."),
        ({"upstream_status": 418}, False, UpstreamError, {}, "It broke."),
    ],
)  # fmt: skip
def test_a_provider_s_failure_is_told_by_its_status_and_code(
    failure: dict[str, Any],
    byok: bool,
    kind: type[SluiceError],
    headers: dict[str, str],
    says: str,
) -> None:
    error = public_error(UpstreamError("It broke.", **failure), a_target(byok=byok, key="k-1"))
    assert type(error) is kind
    assert says in error.message
    assert error.headers == headers
    assert error.details is not None
    assert error.details["provider"] == "sim"
    assert error.details["model"] == "m-1"
    assert error.details["upstream_status"] == failure["upstream_status"]


def test_a_provider_that_asks_for_no_wait_is_taken_at_its_word() -> None:
    failure = UpstreamError("It broke.", upstream_status=429, retry_after=0)
    assert public_error(failure, a_target()).headers == {"Retry-After": "1"}


def test_a_wait_is_the_same_in_the_message_and_in_the_header() -> None:
    failure = UpstreamError("It broke.", upstream_status=429, retry_after=1.4)
    error = public_error(failure, a_target())
    assert f"in {error.headers['Retry-After']} s" in error.message


def test_a_rate_limit_has_the_particulars_that_every_429_has() -> None:
    failure = UpstreamError("It broke.", upstream_status=429, retry_after=2, upstream_code="rpm")
    assert public_error(failure, a_target()).details == {
        "provider": "sim",
        "model": "m-1",
        "upstream_status": 429,
        "upstream_code": "rpm",
        "upstream_message": None,
        "limit_type": "provider",
        "limit": None,
        "reset_time": None,
        "retry_after": 2,
    }


def test_a_time_out_says_where_and_stays_one() -> None:
    error = public_error(UpstreamTimeout("idle", 3), a_target())
    assert isinstance(error, UpstreamTimeout)
    assert error.details == {
        "phase": "idle",
        "seconds": 3,
        "provider": "sim",
        "model": "m-1",
        "upstream_status": None,
        "upstream_code": None,
        "upstream_message": None,
    }


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422, 429, 500, None])
@pytest.mark.parametrize("byok", [True, False])
def test_no_failure_shows_the_credential_or_what_looks_like_one(
    status: int | None, byok: bool
) -> None:
    words = "You sent word-of-mine, and Bearer abc.def; the account's is sk-proj-****wxyz12."
    failure = UpstreamError("It broke.", upstream_status=status, upstream_message=words)
    error = public_error(failure, a_target(key="word-of-mine", byok=byok))
    for text in (error.message, repr(error.details)):
        for part in ("word-of-mine", "abc.def", "wxyz12"):
            assert part not in text


@pytest.mark.parametrize("status", [400, 404, 422, 500])
def test_a_provider_s_words_are_cut(status: int) -> None:
    failure = UpstreamError("It broke.", upstream_status=status, upstream_message="x" * 5000)
    error = public_error(failure, a_target())
    assert error.details is not None
    assert error.details["upstream_message"] == "x" * 1000
    assert len(error.message) < 1200


def test_a_target_without_a_credential_has_nothing_to_hide() -> None:
    failure = UpstreamError("It broke.", upstream_status=400, upstream_message="plain words")
    assert public_error(failure, a_target()).message.endswith(": plain words")


def test_every_hint_is_a_parameter() -> None:
    assert set(CompletionRequest.__struct_fields__) >= routing.HINTS
