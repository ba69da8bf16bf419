"""stop_automaton.py: where a text ends, against a naive search, and which stops a host gets."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concurrency.yielding import Yielder
from gateway.stop_automaton import (
    STEPS,
    StopAutomaton,
    compiled,
    effective,
    for_host,
    turn,
)
from tests.support.pace import scaled

WORDS = st.text(alphabet="ab\u00e9", min_size=1, max_size=4)
STOPS = st.lists(WORDS, min_size=1, max_size=8).map(tuple)
TEXTS = st.text(alphabet="ab\u00e9", max_size=20)


def naive_cut(text: str, stops: tuple[str, ...]) -> int | None:
    """Return where a text ends: before the longest of the stops that are complete first."""
    for end in range(1, len(text) + 1):
        lengths = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if lengths:
            return end - max(lengths)
    return None


def naive_held(text: str, stops: tuple[str, ...]) -> int:
    """Return the length of the longest end of a text that could begin a stop."""
    starts = {stop[:length] for stop in stops for length in range(len(stop) + 1)}
    return max(len(start) for start in starts if text.endswith(start))


def cut(text: str, stops: tuple[str, ...], size: int) -> int | None:
    automaton, state = StopAutomaton(stops), 0
    for at in range(0, len(text), size):
        state, end = automaton.scan(state, text[at : at + size])
        if end >= 0:
            return at + end - automaton.ends[state]
        assert automaton.depth[state] == naive_held(text[: at + size], stops)
    return None


@given(TEXTS, STOPS, st.integers(1, 20))
def test_a_text_ends_where_a_naive_search_says(
    text: str, stops: tuple[str, ...], size: int
) -> None:
    assert cut(text, stops, size) == naive_cut(text, stops)


@pytest.mark.parametrize(
    ("text", "stops", "kept"),
    [
        ("one\ntwo", ("\n",), "one"),
        ("one END", ("END", "ONE"), "one "),
        ("abcde", ("abcde", "c"), "ab"),  # "c" is complete first
        ("xab", ("b", "ab"), "x"),  # both are complete at once: the longest counts
        ("abcd", ("bcd", "abc"), ""),
        ("a.b*c", ("*", "["), "a.b"),
        ("a]b", ("]", "^", "-", "\\"), "a"),
        ("nul \0 byte", ("\0",), "nul "),
        ("a\0b", ("ab", "b"), "a\0"),
        ("naïve 🙂!", ("🙂",), "naïve "),
        ("aaab", ("aab",), "a"),
    ],
)
def test_the_stop_that_is_complete_first_ends_a_text(
    text: str, stops: tuple[str, ...], kept: str
) -> None:
    for size in range(1, len(text) + 1):
        found = cut(text, stops, size)
        assert text[:found] == kept


def host_text(text: str, stops: tuple[str, ...]) -> str:
    """Return the text of a host that removes the stop at which it ends."""
    return text[: naive_cut(text, stops)] if stops else text


@given(TEXTS, STOPS, st.integers(0, 5))
def test_a_text_is_exact_although_the_host_stops_at_some_stops_itself(
    text: str, stops: tuple[str, ...], most: int
) -> None:
    sent = for_host(effective(stops), most)
    assert len(sent) <= most
    seen = host_text(text, sent)
    assert seen[: naive_cut(seen, stops)] == text[: naive_cut(text, stops)]


@given(TEXTS, STOPS)
def test_stops_that_have_another_one_inside_are_not_needed(
    text: str, stops: tuple[str, ...]
) -> None:
    assert naive_cut(text, effective(stops)) == naive_cut(text, stops)


@pytest.mark.parametrize(
    ("stops", "most", "sent"),
    [
        (tuple("abcdef"), 4, tuple("abcd")),
        (tuple("abcdef"), 0, ()),
        (tuple(map(str, range(64))), 4, tuple("0123")),
        # The host would remove "\n\n", and with it the end of ";\n".
        (("\n\n", "a", "b", ";\n"), 1, ("a",)),
        (("\n\n", "a", "b", ";\n"), 2, ("\n\n", ";\n")),
        (("\n\n", "a", "b", ";\n"), 3, ("\n\n", "a", ";\n")),
        (("ab", "x", "b"), 2, ("ab", "x")),
        (("b", "x", "ab"), 2, ("b", "ab")),
        (("b", "x", "ab"), 1, ("x",)),
    ],
)
def test_a_host_gets_the_first_stops_that_hide_no_other_one(
    stops: tuple[str, ...], most: int, sent: tuple[str, ...]
) -> None:
    assert for_host(effective(stops), most) == sent


def test_equal_stops_are_compiled_once() -> None:
    assert compiled(("a", "b")) is compiled(("a", "b"))


ADVERSARIAL = {
    "one long beginning": tuple("a" * 1023 + chr(98 + number) for number in range(64)),
    "many lengths": tuple("a" * length + "b" for length in range(960, 1024)),
    "periods": tuple(("a" * n + "b") * (1024 // (n + 1)) for n in range(1, 65)),
}


@pytest.mark.parametrize("stops", ADVERSARIAL.values(), ids=ADVERSARIAL.keys())
@pytest.mark.parametrize("text", ["a" * 200_000, "a" * 200 + "c", ("a" * 63 + "c") * 3000])
def test_time_and_memory_grow_with_the_text_whatever_the_stops_are(
    stops: tuple[str, ...], text: str
) -> None:
    automaton = StopAutomaton(stops)
    began, state = time.process_time(), 0
    for at in range(0, len(text), 4):
        state, _ = automaton.scan(state, text[at : at + 4])
    assert time.process_time() - began < scaled(5)
    assert len(automaton.depth) <= 1 + sum(map(len, stops))


@pytest.fixture
def yields(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Yield a list that grows with each opportunity for other calls."""
    found: list[bool] = []

    class Counted(Yielder):
        def yield_if_due(self, waited: float = 0.0) -> None:
            found.append(True)

    monkeypatch.setattr("gateway.stop_automaton.Yielder", Counted)
    for function in (compiled, effective, for_host):
        function.cache_clear()
    yield found
    for function in (compiled, effective, for_host):
        function.cache_clear()


def test_other_calls_run_while_long_stops_are_prepared(yields: list[bool]) -> None:
    stops = ADVERSARIAL["one long beginning"]
    compiled(stops)
    assert len(yields) >= len(stops)
    del yields[:]
    assert effective(stops) == stops
    assert len(yields) == len(stops)
    del yields[:]
    for_host(stops, 4)
    assert len(yields) == 2 * len(stops)


def test_other_calls_run_while_a_long_text_is_searched(yields: list[bool]) -> None:
    automaton = StopAutomaton(("a" * 1000 + "b", "END"))
    del yields[:]
    text = "a" * (100 * STEPS) + "END"
    assert automaton.scan(0, text + "more") == (automaton.path("END")[-1], len(text))
    assert len(yields) == 100
    state, end = automaton.scan(0, "a" * (100 * STEPS + 7))
    assert (automaton.depth[state], end) == (1000, -1)


def test_one_call_at_a_time_prepares_long_stops() -> None:
    long, entered = ("a" * 1024,) * 64, threading.Event()

    def prepare() -> None:
        with turn(long):
            entered.set()

    with turn(long):
        other = threading.Thread(target=prepare)
        other.start()
        assert not entered.wait(0.05)
        with turn(("\n\n", "END")):  # usual ones wait for nobody
            pass
    other.join()
    assert entered.is_set()
