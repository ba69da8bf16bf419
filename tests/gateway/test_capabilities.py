"""capabilities.py: the parameters that a target supports, and the treatment of the others."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from completion import CompletionRequest
from errors import UnsupportedParameter
from gateway import capabilities
from gateway.capabilities import Candidate, candidates, fit, prepared, wanted
from gateway.stop_automaton import StopAutomaton, compiled
from providers import registry
from providers.base import Target
from tests.routing.test_router import ROWS, a_request, a_target


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
def test_wanted_lists_the_parameters_that_a_request_uses(
    fields: dict[str, Any], expected: set[str]
) -> None:
    assert wanted(a_request(**fields)) == expected


@pytest.mark.parametrize("field", ["seed", "temperature"])
def test_a_parameter_of_zero_counts_as_requested(field: str) -> None:
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
def test_parameters_that_a_target_lacks_are_dropped_by_name_or_emulated(
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
        ({"suffix": "s"}, False, "suffix", "poor/m-1 doesn't support suffix."),
        ({"suffix": ""}, False, "suffix", "poor/m-1 doesn't support fill-in-the-middle."),
        ({"seed": 7}, True, "seed", "poor/m-1 doesn't support seed."),
        ({"user": "u", "seed": 7}, True, "seed", "doesn't support seed"),
        ({"seed": 7, "suffix": "s"}, True, "suffix", "doesn't support suffix"),
    ],
)
def test_unsupported_parameters_are_refused_and_hints_only_in_strict_mode(
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
        ({"prompts": ((1, 2),)}, "doesn't support a prompt of token ids."),
        ({"echo": True, "logprobs": 1}, "doesn't support echo together with logprobs."),
    ],
)
def test_a_refusal_of_token_ids_or_echoed_logprobs_describes_them(
    fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        fit(a_request(**fields), a_target("local"), strict=False)
    assert caught.value.message.endswith(says)


def test_unknown_parameters_are_dropped_under_the_names_of_the_caller() -> None:
    request = a_request(extra={"top_k": 1}, openai_extra={"ignore_eos": True})
    found = fit(request, a_target("local"), strict=False)
    assert found == Candidate(a_target("local"), a_request(), ("ignore_eos", "top_k"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"n": 2, "stop": ("a",)}, None),
        ({"n": 3}, "limited/m-1 doesn't support n above 2."),
    ],
)
def test_a_value_above_what_a_host_takes_is_refused(
    fields: dict[str, Any], says: str | None
) -> None:
    row = {**ROWS["sim"], "limits": {"n": 2}}
    target = Target(registry.rows({"limited": row}, {})["limited"], "m-1")
    if says is None:
        assert fit(a_request(**fields), target, strict=False).request == a_request(**fields)
        return
    with pytest.raises(UnsupportedParameter) as caught:
        fit(a_request(**fields), target, strict=False)
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("model", "most"),
    [
        ("openai/gpt-3.5-turbo-instruct", 4),
        ("openai/gpt-4.1-mini", 4),
        ("azure/mine", 4),
        ("vllm/m", 4),
        ("cohere/m", 5),
        ("google/m", 5),
        ("deepseek/m", 16),
        ("llamacpp/m", None),
        ("ollama/m", None),
        ("mistral/m", None),
        ("anthropic/m", None),
        ("bedrock/m", None),
        ("local/pydoc", None),
        ("openai/o1", 0),
        ("openai/o3", 0),
        ("openai/gpt-5-mini", 0),
        ("openai/gpt-5-chat-latest", 4),
        ("azure/o4-mini", 0),
        ("xai/grok-4", 0),
    ],
)
def test_a_host_gets_the_stop_sequences_that_it_takes_and_the_others_are_emulated(
    model: str, most: int | None
) -> None:
    name, _, own = model.partition("/")
    target = Target(registry.rows({})[name], own)
    stops = tuple(f"<{number}>" for number in range(64))
    sent = stops[:most]
    if sent:
        found = prepared(fit(a_request(stop=sent), target, strict=True))
        assert (found.request.stop, found.stops) == (sent, None)
    if most is not None:
        found = prepared(fit(a_request(stop=stops), target, strict=True))
        assert (found.request.stop, found.dropped) == (sent, ())
        assert found.stops is compiled(stops)


def of_sim(**limits: float) -> Target:
    row = {**ROWS["sim"], "limits": limits}
    return Target(registry.rows({"sim": row}, {})["sim"], "m-1")


@pytest.mark.parametrize(
    "stops", [("a", "a", "b", "b"), ("\n", "\n\n", "b", "\n\n\n"), ("b", "abc", "ab", "a")]
)
def test_stop_sequences_that_never_come_first_do_not_count(stops: tuple[str, ...]) -> None:
    found = prepared(fit(a_request(stop=stops), of_sim(stop=2), strict=False))
    assert found.stops is None
    assert found.request.stop in {("a", "b"), ("\n", "b"), ("b", "a")}


def test_long_stop_sequences_are_divided_only_when_an_attempt_needs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stops = tuple(f"{number}" + "x" * 1000 for number in range(5))
    monkeypatch.setattr(StopAutomaton, "__init__", lambda *_: pytest.fail("an automaton was made"))
    found = fit(a_request(stop=stops), of_sim(stop=4), strict=True)
    assert (found.request.stop, found.stops) == (stops, None)
    with pytest.raises(UnsupportedParameter, match="stop above 4 together with best_of"):
        fit(a_request(stop=stops, best_of=2), of_sim(stop=4), strict=True)
    monkeypatch.undo()
    found = prepared(found)
    assert (found.request.stop, found.stops) == (stops[:4], compiled(stops))
    assert prepared(found) is found


def test_sluice_toml_raises_the_number_of_stop_sequences() -> None:
    row = registry.rows({"vllm": {"limits": {"stop": 40}}})["vllm"]
    stops = tuple(f"{number}" for number in range(40))
    found = prepared(fit(a_request(stop=stops), Target(row, "m"), strict=True))
    assert (found.request.stop, found.stops) == (stops, None)


def test_fallbacks_get_as_many_stop_sequences_as_each_takes() -> None:
    rows = registry.rows({})
    few, many = Target(rows["vllm"], "m"), Target(rows["llamacpp"], "m")
    found = candidates(a_request(stop=tuple("abcde")), [few, many], strict=False)
    found = [*map(prepared, found)]
    assert [candidate.request.stop for candidate in found] == [tuple("abcd"), tuple("abcde")]
    assert [candidate.stops is None for candidate in found] == [False, True]


def test_with_emulated_stop_sequences_echo_is_emulated_too() -> None:
    found = prepared(fit(a_request(stop=("a", "b"), echo=True), of_sim(stop=1), strict=True))
    assert (found.echo, found.request.echo) == (True, False)


def test_a_request_for_no_tokens_needs_no_stop_sequences() -> None:
    request = a_request(stop=("a", "b"), echo=True, logprobs=1, max_tokens=0)
    found = fit(request, of_sim(stop=1), strict=True)
    assert found.request == msgspec.structs.replace(request, stop=())
    assert (found.echo, found.stops) == (False, None)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"echo": True, "logprobs": 0}, "echo and logprobs"),
        ({"echo": True, "prompts": ((1, 2),)}, "echo and a prompt of token ids"),
        ({"best_of": 3}, "best_of"),
        ({"extra": {"min_tokens": 5}}, "min_tokens"),
        ({"openai_extra": {"include_stop_str_in_output": True}}, "include_stop_str_in_output"),
        ({"openai_extra": {"no_stop_trim": True}}, "no_stop_trim"),
        ({"openai_extra": {"use_beam_search": True}}, "use_beam_search"),
    ],
)
def test_stop_sequences_that_cannot_be_emulated_exactly_are_refused(
    fields: dict[str, Any], words: str
) -> None:
    fit(a_request(stop=("a",), **fields), of_sim(stop=1), strict=False)
    with pytest.raises(UnsupportedParameter) as caught:
        fit(a_request(stop=("a", "b"), **fields), of_sim(stop=1), strict=False)
    assert caught.value.message.endswith(f"doesn't support stop above 1 together with {words}.")
    assert caught.value.param == "stop"


@pytest.mark.parametrize("suffix", ["", "x"])
@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("mistral/codestral-latest", "/v1/fim/completions"),
        ("deepseek/m", "/beta/completions"),
        ("llamacpp/m", "/infill"),
    ],
)
def test_a_suffix_goes_to_the_fill_in_the_middle_endpoint(
    model: str, path: str, suffix: str
) -> None:
    name, _, own = model.partition("/")
    found = fit(a_request(suffix=suffix), Target(registry.rows({})[name], own), strict=True)
    sent = registry.dialect(found.target.dialect).call(found.request, found.target)
    assert sent.url.endswith(path)
    assert f'suffix":"{suffix}"' in sent.body.decode()


def test_targets_that_cannot_honor_a_request_are_skipped() -> None:
    request, poor, rich = a_request(suffix="s"), a_target("poor"), a_target("sim")
    assert [c.target for c in candidates(request, [poor, rich, poor], strict=False)] == [rich]


def test_a_request_that_no_target_can_honor_gets_the_error_of_the_first_target() -> None:
    first, second = a_target("poor"), Target(a_target("poor").provider, "m-2")
    with pytest.raises(UnsupportedParameter, match="poor/m-1"):
        candidates(a_request(suffix="s"), [first, second], strict=False)


def test_every_hint_is_a_parameter() -> None:
    assert set(CompletionRequest.__struct_fields__) >= capabilities.HINTS


def local_row(**fields: Any) -> Target:
    row = {"base_url": "http://127.0.0.1:1/v1", "completions": True, **fields}
    return Target(registry.rows({"mine": row}, {})["mine"], "m-1")


@pytest.mark.parametrize(
    ("row", "fields", "param", "says"),
    [
        ({"cannot": ["echo"]}, {"echo": True, "logprobs": 1}, "logprobs",
         "doesn't support echo together with logprobs."),
        ({"cannot": ["echo", "logprobs"]}, {"echo": True, "logprobs": 1}, "logprobs",
         "doesn't support logprobs."),
        ({"cannot": ["echo"]}, {"echo": True, "prompts": ((1, 2),)}, "echo",
         "doesn't support echo together with a prompt of token ids."),
        ({"cannot": ["echo", "token_ids"]}, {"echo": True, "prompts": ((1, 2),)}, "prompt",
         "doesn't support a prompt of token ids."),
        ({"completions": False, "cannot": ["logprobs"]}, {"echo": True, "logprobs": 1}, "logprobs",
         "doesn't support logprobs."),
        ({"fim": {"path": "/infill", "dialect": "infill"}}, {"suffix": "s", "logprobs": 1},
         "logprobs", "doesn't support logprobs together with suffix."),
        ({"fim": {"path": "/infill", "dialect": "infill"}, "cannot": ["n"]},
         {"suffix": "s", "n": 2}, "n", "doesn't support n."),
    ],
)  # fmt: skip
def test_a_refusal_names_the_parameter_at_fault(
    row: dict[str, Any], fields: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        fit(a_request(**fields), local_row(**row), strict=False)
    assert caught.value.message == f"mine/m-1 {says}"
    assert caught.value.param == param


def test_the_llamacpp_row_emulates_echo_and_refuses_it_only_with_logprobs() -> None:
    target = Target(registry.rows({}, {})["llamacpp"], "m")
    assert fit(a_request(echo=True), target, strict=False).echo
    assert fit(a_request(logprobs=1), target, strict=False).request.logprobs == 1
    with pytest.raises(UnsupportedParameter, match="echo together with logprobs"):
        fit(a_request(echo=True, logprobs=1), target, strict=False)


@pytest.mark.parametrize(
    ("model", "stops", "sent"),
    [
        ("anthropic/claude-opus-5-5", ("END",), ("END",)),
        ("anthropic/claude-opus-5-5", ("\n", "END"), ("END",)),
        ("anthropic/claude-opus-5-5", ("\n\nHuman:", "\n\n"), ()),
        ("anthropic/claude-opus-5-5", ("\nHuman:", "\n\n"), ()),  # it could hide the end of "\n\n"
        ("bedrock/us.anthropic.claude-opus-5-5", (" ", "END"), ("END",)),
        ("bedrock/amazon.nova-lite", ("\n", "END"), ("\n", "END")),
    ],
)
def test_stop_sequences_of_white_space_are_emulated_where_a_host_refuses_them(
    model: str, stops: tuple[str, ...], sent: tuple[str, ...]
) -> None:
    name, _, own = model.partition("/")
    found = prepared(fit(a_request(stop=stops), Target(registry.rows({})[name], own), strict=True))
    assert found.request.stop == sent
    assert (found.stops is None) is (sent == stops)


@pytest.mark.parametrize(
    ("model", "stops", "words"),
    [
        ("anthropic/claude-opus-5-5", ("\n",), "a stop of white space only"),
        ("xai/grok-4", ("END",), "stop"),
        ("vllm/m", tuple("abcde"), "stop above 4"),
    ],
)
def test_a_refused_emulation_says_which_stop_sequences_the_host_lacks(
    model: str, stops: tuple[str, ...], words: str
) -> None:
    name, _, own = model.partition("/")
    request = a_request(stop=stops, extra={"min_tokens": 5})
    with pytest.raises(UnsupportedParameter) as caught:
        fit(request, Target(registry.rows({})[name], own), strict=False)
    assert caught.value.message == f"{model} doesn't support {words} together with min_tokens."
