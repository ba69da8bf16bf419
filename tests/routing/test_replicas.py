"""replicas.py: the order in which a call tries a row's replicas."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from completion import CompletionRequest
from providers import registry
from providers.base import Target
from routing.replicas import BOUND, SLACK_CALLS, Load, ReplicaLoads, affinity_of, ranked

LOADS = st.lists(
    st.tuples(st.floats(0.001, 1000), st.integers(0, 500)), min_size=1, max_size=12
).map(lambda found: [Load(f"r{n}", weight, calls) for n, (weight, calls) in enumerate(found)])


def key(text: str) -> bytes:
    return affinity_of(CompletionRequest(prompts=("x",)), "engines", text)


def empty(names: str = "abcd", weight: float = 1.0) -> list[Load]:
    return [Load(name, weight, 0) for name in names]


def allowed(load: Load, loads: list[Load]) -> float:
    """Return the replica's bound after it got one more call."""
    share = load.weight / sum(one.weight for one in loads)
    return BOUND * share * (1 + sum(one.calls for one in loads)) + SLACK_CALLS


@given(LOADS, st.text(max_size=20))
def test_the_chosen_replica_stays_within_its_bound_whatever_the_loads_are(
    loads: list[Load], text: str
) -> None:
    order = ranked(loads, key(text))
    assert sorted(order) == sorted(load.name for load in loads)
    chosen = next(load for load in loads if load.name == order[0])
    assert chosen.calls + 1 <= allowed(chosen, loads) + 1e-6


@given(LOADS, st.text(max_size=20))
def test_the_choice_is_the_key_s_home_or_the_replica_with_the_fewest_calls(
    loads: list[Load], text: str
) -> None:
    home = ranked([load._replace(calls=0) for load in loads], key(text))[0]
    first = ranked(loads, key(text))[0]
    least = min(load.calls / load.weight for load in loads)
    chosen = next(load for load in loads if load.name == first)
    at_home = next(load for load in loads if load.name == home)
    if at_home.calls + 1 <= allowed(at_home, loads) - 1e-6:
        assert first == home
    assert first == home or chosen.calls / chosen.weight == least


@given(st.lists(st.tuples(st.integers(0, 63), st.booleans()), max_size=300))
def test_no_replica_exceeds_its_bound_when_it_gets_a_call_in_any_sequence_of_calls(
    steps: list[tuple[int, bool]],
) -> None:
    calls = Counter(dict.fromkeys("abcd", 0))
    running: list[str] = []
    for prefix, ends in steps:
        if ends and running:
            calls[running.pop(0)] -= 1
            continue
        name = ranked([Load(n, 1.0, calls[n]) for n in "abcd"], key(str(prefix)))[0]
        calls[name] += 1
        running.append(name)
        assert calls[name] <= BOUND * len(running) / 4 + SLACK_CALLS


def test_a_key_has_one_home_while_no_replica_is_busy() -> None:
    homes = [ranked(empty(), key(str(n)))[0] for n in range(400)]
    assert homes == [ranked(empty(), key(str(n)))[0] for n in range(400)]
    assert all(70 <= count <= 130 for count in Counter(homes).values())


def test_weights_decide_how_many_keys_a_replica_is_the_home_of() -> None:
    loads = [Load("small", 1.0, 0), Load("big", 3.0, 0)]
    homes = Counter(ranked(loads, key(str(n)))[0] for n in range(1000))
    assert 690 <= homes["big"] <= 810


def test_a_lost_replica_moves_only_its_own_keys_and_spreads_them() -> None:
    before = {n: ranked(empty("abcd"), key(str(n)))[0] for n in range(400)}
    after = {n: ranked(empty("abc"), key(str(n)))[0] for n in range(400)}
    moved = Counter(after[n] for n in before if before[n] == "d")
    assert all(after[n] == home for n, home in before.items() if home != "d")
    assert set(moved) == set("abc")


def test_a_busy_home_leaves_the_call_to_the_replica_with_the_fewest_calls() -> None:
    home, *others = ranked(empty(), key("k"))
    loads = [Load(home, 1.0, 8), *(Load(n, 1.0, 4 + p) for p, n in enumerate(others))]
    assert ranked(loads, key("k"))[0] == home
    busy = [load._replace(calls=12) if load.name == home else load for load in loads]
    assert ranked(busy, key("k"))[0] == others[0]


# The affinity key


def affinity(prompt: object, named: str | None = None) -> bytes:
    request = CompletionRequest(prompts=(prompt,))  # type: ignore[arg-type]
    return affinity_of(request, "engines", named)


def test_prompts_with_equal_first_1024_characters_have_one_affinity_key() -> None:
    start = "a" * 1024
    assert affinity(start + "b") == affinity(start + "c")
    assert affinity(start) != affinity("b" + start)
    assert affinity((1,) * 1024 + (2,)) == affinity((1,) * 1024 + (3,))
    assert affinity((1, 2)) != affinity((12,))


def test_the_caller_s_own_affinity_key_replaces_the_prompt() -> None:
    assert affinity("one", "k") == affinity("two", "k") != affinity("one")
    assert affinity("one", "") == affinity("one")


@pytest.mark.parametrize("prompt", ["", "\ud800", ()])
def test_each_prompt_has_an_affinity_key(prompt: object) -> None:
    assert len(affinity(prompt)) == 16


# The calls in flight


def targets() -> tuple[Target, ...]:
    rows = registry.rows({"engines": {"base_url": ["http://a:1/v1", "http://b:1/v1"]}})
    return Target(rows["engines"], "m").replicas


def test_calls_of_this_process_and_of_others_count() -> None:
    loads = ReplicaLoads()
    one, two = targets()
    loads.started(one)
    loads.started(one)
    loads.ended(one)
    assert loads.own() == {("engines", "a:1"): 1}
    loads.others_have({("engines", "b:1"): 50})
    assert loads.ranks([one, two], key("k")) == {"a:1": 0, "b:1": 1}
    loads.others_have({("engines", "a:1"): 50})
    assert loads.ranks([one, two], key("k")) == {"b:1": 0, "a:1": 1}
    loads.ended(one)
    assert loads.own() == {}
