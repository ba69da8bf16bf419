"""router.py: which targets a model name resolves to, and which key each of them gets."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from completion import (
    CompletionRequest,
)
from config import ConfigError, Settings
from errors import (
    InvalidRequest,
    ModelForbidden,
    ModelNotFound,
    ProviderNotFound,
    SluiceError,
)
from keys.redaction import Secret
from providers import registry
from providers.base import Target
from routing.router import Route, Router

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
    row = registry.rows(ROWS, {})[provider]
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
def test_a_model_name_leads_to_its_targets_in_order(route: Route, expected: list[str]) -> None:
    aliases = {"fast": ["sim/one", "poor/two"], "single": "sim/one"}
    assert names(router(aliases=aliases).targets(route)) == expected


def test_the_default_model_may_be_an_alias() -> None:
    found = router(aliases={"fast": ["sim/one"]}, default="fast").targets(Route())
    assert names(found) == ["sim/one"]


# Models that a key may use


@pytest.mark.parametrize(
    ("may", "route", "expected"),
    [
        (["fast"], Route(model="fast"), ["sim/one", "poor/two"]),
        (["f*"], Route(model="fast"), ["sim/one", "poor/two"]),
        (["fast"], Route(), ["sim/one", "poor/two"]),
        (["fast"], Route(model="sim/one"), "sim/one"),
        (["fast"], Route(model="one", provider="sim"), "sim/one"),
        (["fast"], Route(model="fast", provider="sim"), "sim/fast"),
        (["fast"], Route(model="other"), "other"),
        (["fast"], Route(model="FAST"), ModelNotFound),
        (["fast"], Route(model="sim/one", fallbacks=("fast",)), ["sim/one", "poor/two"]),
        (["fast"], Route(model="sim/x", fallbacks=("sim/y", "fast")), ["sim/one", "poor/two"]),
        (["fast"], Route(model="poor/two", fallbacks=("fast",)), ["sim/one", "poor/two"]),
        (["fast"], Route(model="fast", fallbacks=("sim/x", "other")), ["sim/one", "poor/two"]),
        (["fast", "sim/*"], Route(model="other"), ["sim/three"]),
        (["sim/*"], Route(model="fast"), ["sim/one"]),
        (["poor/*"], Route(model="fast", fallbacks=("sim/x",)), ["poor/two"]),
        (["sim/*"], Route(model="poor/two", fallbacks=("fast",)), ["sim/one"]),
        (["sim/shadow"], Route(model="sim/shadow"), ["poor/two"]),
        (["poor/*"], Route(model="sim/shadow"), ["poor/two"]),
        (["away"], Route(model="away"), ProviderNotFound),
        ([], Route(model="away"), ProviderNotFound),
        (["away"], Route(model="sim/x", fallbacks=("away",)), ProviderNotFound),
        ([], Route(model="fast"), "fast"),
        ([], Route(), "fast"),
        (["local/*"], Route(model="fast", fallbacks=("other",)), "fast"),
        (["fast"], Route(model="fast", byok_api_key=Secret("sk-own")), ["sim/one"]),
        (["fast"], Route(model="sim/x", fallbacks=("fast",), byok_api_key=Secret("sk-own")),
         ["sim/one"]),
        (["fast"], Route(model="locked/x", fallbacks=("fast",), byok_api_key=Secret("sk-own")),
         "locked/x"),
    ],
)  # fmt: skip
def test_a_key_that_may_use_an_alias_reaches_its_targets_by_that_alias_only(
    may: list[str], route: Route, expected: list[str] | str | type[SluiceError]
) -> None:
    """A text stands for the name in the error for a forbidden model."""
    aliases = {
        "fast": ["sim/one", "poor/two"],
        "other": ["poor/three", "sim/three"],
        "sim/shadow": "poor/two",
        "away": "locked/x",
    }
    found = router(aliases=aliases, default="fast")

    def may_use(name: str) -> bool:
        return any(fnmatchcase(name, glob) for glob in may)

    if isinstance(expected, list):
        assert names(found.targets(route, may_use)) == expected
        return
    with pytest.raises(ModelForbidden if isinstance(expected, str) else expected) as caught:
        found.targets(route, may_use)
    if isinstance(expected, str):
        assert caught.value.message == f"This key may not use {expected}."


@pytest.mark.parametrize(
    ("route", "kind", "says"),
    [
        (Route(model="gpt-4o"), ModelNotFound, "Model 'gpt-4o' was not found."),
        (Route(model="sim/"), ModelNotFound, "Model 'sim/' was not found."),
        (Route(model="/m"), ProviderNotFound, "Provider '' was not found."),
        (Route(model="smi/m"), ProviderNotFound, "'smi' was not found. Did you mean sim?"),
        (Route(model="zzzzz/m"), ProviderNotFound, "Provider 'zzzzz' was not found."),
        (Route(model="m", provider="smi"), ProviderNotFound, "Did you mean sim?"),
        (Route(model="locked/m"), ProviderNotFound, "its operator must set LOCKED_KEY"),
        (Route(model="sim/m", fallbacks=("nobody/m",)), ProviderNotFound, "'nobody'"),
        (Route(model="x" * 500), ModelNotFound, f"'{'x' * 100}...'"),
    ],
)
def test_an_unknown_name_is_reported_as_a_missing_model_or_provider(
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
def test_any_model_name_leads_to_a_known_provider_or_is_refused(
    model: str, provider: str | None
) -> None:
    try:
        found = ROUTER.targets(Route(model=model, provider=provider))
    except (InvalidRequest, ModelNotFound, ProviderNotFound):
        return
    assert all(target.provider.name in ROUTER.providers for target in found)


DOTS = [".", "..", "a/../b", "a/./b", "../b", "./b", "a/..", "a/.", "a/b/.."]
DOTS += ["%2e", "%2e%2E", ".%2e", "a%2f..%2fb", "%252e%252e", "%25252e."]
DOTS += [
    "a\\..\\b",
    "..\\b",
    "a/..\\b",
    "a%5c..%5Cb",
    "..;x/b",
    "..?x",
    "..#x",
    "a/.. /b",
    "a/.\t./b",
]
DOTS += ["a/..\0/b", "a/.%09./b", "a/%2e%2e%20/b"]
PLAIN = [
    "gpt-4.1",
    "a..b",
    "...",
    "a/...",
    ".hidden",
    "a/b.",
    "v1..2",
    "/models/a.gguf",
    "100%",
    "%zz",
]


@pytest.mark.parametrize("dots", DOTS)
def test_a_name_with_a_part_of_dots_is_refused_wherever_it_is_given(dots: str) -> None:
    for route in (
        Route(model=dots),
        Route(model=f"sim/{dots}"),
        Route(model=f"unknown/{dots}"),
        Route(model=dots, provider="sim"),
        Route(model=f"sim/{dots}", provider="sim"),
        Route(model="sim/m", fallbacks=(f"sim/{dots}",)),
        Route(model="sim/m", fallbacks=("sim/m", dots)),
        Route(model=dots, provider="locked", byok_api_key=Secret("k")),
    ):
        with pytest.raises(
            InvalidRequest, match=r"no part of a name can be '\.' or '\.\.'"
        ) as caught:
            ROUTER.targets(route)
        assert caught.value.param == ("fallbacks" if route.fallbacks else "model")


@pytest.mark.parametrize("name", PLAIN)
def test_a_name_with_other_dots_leads_to_its_target(name: str) -> None:
    assert [target.model for target in ROUTER.targets(Route(model=f"sim/{name}"))] == [name]


@pytest.mark.parametrize("dots", DOTS)
def test_a_name_of_dots_in_the_configuration_stops_the_start(dots: str) -> None:
    for more in (
        {"aliases": {"fast": f"sim/{dots}"}},
        {"aliases": {"fast": ["sim/m", f"sim/{dots}"]}},
        {"aliases": {dots: "sim/m"}},
        {"default": f"sim/{dots}"},
    ):
        with pytest.raises(ConfigError):
            router(**more)
    with pytest.raises(ConfigError):
        registry.rows({"sim": {**ROWS["sim"], "models": ["m", dots]}}, {})


def test_a_key_of_the_operator_goes_only_to_its_provider() -> None:
    found = router({"LOCKED_KEY": "sk-1"}).targets(
        Route(model="locked/m", fallbacks=("sim/m", "local/pydoc"))
    )
    assert [target.credential for target in found] == [Secret("sk-1"), None, None]
    assert not any(target.byok for target in found)


@pytest.mark.parametrize("environ", [{}, {"LOCKED_KEY": "sk-operator"}])
def test_a_key_of_the_caller_replaces_the_key_of_the_operator(environ: dict[str, str]) -> None:
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
def test_a_provider_is_enabled_when_its_key_is_set_or_not_needed(
    environ: dict[str, str], provider: str, enabled: bool
) -> None:
    found = router(environ)
    assert found.enabled(found.provider(provider)) is enabled


@pytest.mark.parametrize(
    ("aliases", "default", "says"),
    [
        ({"fast": []}, "local/pydoc", "[aliases]: fast must be a model or a list of models"),
        ({"fast": [1]}, "local/pydoc", "[aliases]: fast must be a model"),
        ({"fast": 1}, "local/pydoc", "[aliases]: fast must be a model"),
        ({"fast": "nobody/m"}, "local/pydoc", "fast: 'nobody/m' is not a model of this server"),
        ({"fast": "sim/"}, "local/pydoc", "fast: 'sim/' is not a model"),
        ({"fast": ["sim/m"], "best": "fast"}, "local/pydoc", "best: 'fast' is not a model"),
        ({}, "gpt-4o", "SLUICE_DEFAULT_MODEL: 'gpt-4o' is not a model"),
        ({"fast": ["sim/m"]}, "slow", "SLUICE_DEFAULT_MODEL: 'slow' is not a model"),
    ],
)
def test_an_invalid_alias_or_default_model_stops_the_start(
    aliases: dict[str, Any], default: str, says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        router(aliases=aliases, default=default)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("aliases", "model", "near"),
    [
        ({"fast": "sin/m"}, "local/pydoc", "did you mean sim?"),
        ({"fast": "sim/m"}, "fats", "did you mean fast?"),
    ],
)
def test_a_misspelt_provider_or_alias_is_reported_with_the_nearest_name(
    aliases: dict[str, Any], model: str, near: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        router(aliases=aliases, default=model)
    assert str(caught.value).endswith(near)


@pytest.mark.parametrize("default", ["locked/m", "best"])
def test_a_default_model_whose_provider_is_not_enabled_is_a_warning(default: str) -> None:
    aliases = {"best": ["locked/m"], "any": ["locked/m", "sim/m"]}
    [warning] = router(aliases=aliases, default=default).warnings()
    assert f"the default model {default} can't be used" in warning
    assert "LOCKED_KEY" in warning
    assert router({"LOCKED_KEY": "k"}, aliases=aliases, default=default).warnings() == []
    assert router(aliases=aliases, default="any").warnings() == []


def test_an_alias_named_like_a_model_may_add_fallbacks() -> None:
    found = router(aliases={"sim/m": ["sim/m", "poor/m"]}).targets(Route(model="sim/m"))
    assert names(found) == ["sim/m", "poor/m"]


def test_an_alias_may_have_the_name_of_a_model_whose_provider_is_not_enabled() -> None:
    found = router(aliases={"openai/gpt-4o-mini": "sim/m"})
    assert names(found.targets(Route(model="openai/gpt-4o-mini"))) == ["sim/m"]
    assert names(found.targets(Route(model="openai/gpt-4o-mini"), "openai/gpt-4o-mini".__eq__)) == [
        "sim/m"
    ]
    with pytest.raises(ModelForbidden):
        found.targets(Route(model="sim/m"), "openai/gpt-4o-mini".__eq__)
    assert found.hidden_models() == []


@pytest.mark.parametrize(
    ("aliases", "hidden"),
    [
        ({"openai/m": "sim/m"}, ["openai/m"]),
        ({"sim/a": ["sim/b", "sim/a"], "fast": "sim/m"}, ["sim/a"]),
        ({"sim/a": ["sim/a", "sim/b"], "locked/m": "sim/m", "none/m": "sim/m"}, []),
    ],
)
def test_an_alias_that_hides_a_model_of_an_enabled_provider_is_reported(
    aliases: dict[str, Any], hidden: list[str]
) -> None:
    found = router({"OPENAI_API_KEY": "k"}, aliases).hidden_models()
    assert [text.split('"')[1] for text in found] == hidden


def test_a_key_of_the_caller_goes_only_to_the_first_provider() -> None:
    route = Route(model="locked/m", fallbacks=("sim/m",), byok_api_key=Secret("sk-own"))
    found = router().targets(route)
    assert [t.name for t in found if t.credential == Secret("sk-own")] == ["locked/m"]


def test_a_provider_name_without_a_model_is_not_found() -> None:
    with pytest.raises(ModelNotFound):
        router().targets(Route(model="sim/", provider="sim"))


# Several keys


def keyed(text: str, route: Route | None = None) -> list[list[Target]]:
    """Return the targets of four successive calls."""
    found = router({"LOCKED_KEY": text})
    return [found.targets(route or Route(model="locked/m")) for _ in range(4)]


@pytest.mark.parametrize("text", ["a,b,c", " a , b,c,", ",a,,b,c,a"])
def test_several_keys_of_a_provider_take_turns_as_separate_targets(text: str) -> None:
    found = keyed(text)
    turns = [[target.key_number for target in targets] for targets in found]
    assert turns == [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 2, 3]]
    credentials = {(t.key_number, t.credential) for targets in found for t in targets}
    assert credentials == {(1, Secret("a")), (2, Secret("b")), (3, Secret("c"))}


def test_a_single_key_or_a_key_of_the_caller_is_always_one_target() -> None:
    assert [len(targets) for targets in keyed("a")] == [1] * 4
    own = keyed("a,b", Route(model="locked/m", byok_api_key=Secret("mine")))
    assert [t.credential for targets in own for t in targets] == [Secret("mine")] * 4


@pytest.mark.parametrize("text", ["", " ", ",", " , ,\t"])
def test_a_key_variable_with_only_commas_holds_no_key(text: str) -> None:
    found = router({"LOCKED_KEY": text})
    assert not found.enabled(found.provider("locked"))
    with pytest.raises(ProviderNotFound):
        found.targets(Route(model="locked/m"))
