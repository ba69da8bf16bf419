"""ngram.py: the tokens, the probabilities and the sampling of the toy model."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pydoc_data.topics import topics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.local import ngram
from providers.local.ngram import BREAK, END, UNKNOWN, Model, Sampling, follow, shape, tokens, walk

TEXT = """Birds
*****

The small bird sings a song.

The small bird "sings" a psalm (or two). The small cat sees a bird.

   bird ::= wing wing

>>> The code here is not prose.

See also the small bird there.
"""


def learn(*texts: str) -> Model:
    model = None
    for step in ngram.build(texts):
        model = step
    assert model is not None
    return model


@pytest.fixture(scope="module")
def toy() -> Model:
    return learn(TEXT)


@pytest.fixture(scope="module")
def pydoc() -> Model:
    return learn(*topics.values())


def named(model: Model, probabilities: Mapping[int, float]) -> dict[str, float]:
    return {model.texts[token]: value for token, value in probabilities.items()}


def after(model: Model, prompt: str) -> dict[str, float]:
    return named(model, model.probabilities(model.context(tokens(prompt))))


def write(model: Model, prompt: str, seed: str = "", at_most: int = 4096, **how: float) -> str:
    steps = walk(model, model.context(tokens(prompt)), Sampling(**how), random.Random(seed))
    return "".join(model.texts[token] for _, token in islice(steps, at_most))


# Tokens


@given(st.text() | st.text("ab\u2019'.-() \n\t\r_1é"))
def test_tokens_are_lossless(text: str) -> None:
    found = list(tokens(text))
    assert "".join(found) == text
    assert all(found)


def test_tokens_are_words_marks_and_line_ends() -> None:
    assert list(tokens("It\u2019s  len() of sys.path,\t(ok).\n \nYes ")) == [
        *(
            "It\u2019s",
            "  len()",
            " of",
            " sys.path",
            ",",
            "\t(",
            "ok",
            ")",
            ".",
            "\n \n",
            "Yes",
            " ",
        ),
    ]


# Learning


def test_only_prose_is_learned(toy: Model) -> None:
    assert (
        "".join(toy.texts[len(ngram.SPECIAL) :]) == "The small bird sings a song psalm The cat sees"
    )
    assert after(toy, "zebra small") == pytest.approx({" bird": 2 / 3, " cat": 1 / 3})


def test_a_paragraph_is_learned_once() -> None:
    once, twice = learn(TEXT), learn(TEXT, TEXT)
    assert once.rows == twice.rows


def test_the_reference_text_becomes_clean_prose(pydoc: Model) -> None:
    assert 1500 < len(pydoc.texts) < 1 << 16
    assert not [text for text in pydoc.texts[4:] if set(text) & set("\"*=<>[]{}|\\'`~#@")]
    assert list(pydoc.rows) == sorted(pydoc.rows)


def test_pydoc_model_index_is_smaller_than_1_megabyte(pydoc: Model) -> None:
    assert pydoc.rows.itemsize * len(pydoc.rows) < 1_000_000


def test_building_the_model_yields_control_more_than_100_times() -> None:
    steps = list(ngram.build(topics.values()))
    assert isinstance(steps.pop(), Model)
    assert len(steps) > 100
    assert set(steps) == {None}


# Probabilities


def test_a_longer_context_counts_most(toy: Model) -> None:
    # " a" followed these three tokens twice, and the last two tokens as often.
    assert after(toy, "small bird sings") == pytest.approx({" a": 1.0})
    # " song" and " psalm" followed these three tokens once each.
    assert after(toy, "bird sings a") == pytest.approx({" song": 0.5, " psalm": 0.5})
    # " bird" ended a sentence after "sees a", and " sings" followed "small bird".
    assert after(toy, "sees a bird") == pytest.approx({".": 1.0})


def test_probabilities_mix_two_context_lengths() -> None:
    model = learn(
        "The red bird sings a song.\n\nThe red bird sings a song.\n\nThe old bird sings a psalm."
        "\n\nAn old bird sees a song."
    )
    found = after(model, "The old bird")
    trust = ngram.TRUST
    assert found == pytest.approx({" sings": trust + (1 - trust) / 2, " sees": (1 - trust) / 2})


def test_model_backs_off_to_shorter_contexts(toy: Model) -> None:
    assert after(toy, "zebra small cat") == {" sees": pytest.approx(1.0)}
    assert after(toy, "zebra cat") == {" sees": pytest.approx(1.0)}


def test_unknown_word_is_followed_by_a_new_paragraph(toy: Model) -> None:
    context = toy.context(tokens("A zebra"))
    assert toy.probabilities(context) == {BREAK: pytest.approx(1.0)}
    assert named(toy, toy.probabilities(follow(context, BREAK))) == {"The": pytest.approx(1.0)}
    assert after(toy, "") == after(toy, "zebra\r\n") == {"The": pytest.approx(1.0)}


def test_generated_text_never_starts_with_the_end_token(toy: Model) -> None:
    context = toy.context(tokens("The small cat sees a bird."))
    assert END in toy.probabilities(context)
    assert END not in toy.probabilities(context, may_end=False)
    assert sum(toy.probabilities(context, may_end=False).values()) == pytest.approx(1)
    for seed in range(20):
        assert write(toy, "The small cat sees a bird.", str(seed))
        assert write(toy, "The small cat sees a bird.", str(seed), temperature=0.9)


@given(data=st.data())
def test_probabilities_are_a_distribution(pydoc: Model, data: st.DataObject) -> None:
    known = st.integers(UNKNOWN, len(pydoc.texts) - 1).filter(lambda token: token != END)
    context = 0
    for token in data.draw(st.lists(known, min_size=1, max_size=4)):
        context = follow(context, token)
    found = pydoc.probabilities(context)
    assert math.fsum(found.values()) == pytest.approx(1)
    assert all(value > 0 for value in found.values())
    assert UNKNOWN not in found
    source = random.Random(data.draw(st.integers()))
    assert all(pydoc.draw(context, source) in found for _ in range(20))


def test_drawing_follows_the_probabilities(pydoc: Model) -> None:
    context = pydoc.context(tokens("This method is"))
    expected = pydoc.probabilities(context)
    source = random.Random(1)
    drawn = Counter(pydoc.draw(context, source) for _ in range(20_000))
    assert len(expected) > 3
    for token, probability in expected.items():
        assert drawn[token] / 20_000 == pytest.approx(probability, abs=0.015)


# Sampling

distributions = st.dictionaries(
    st.integers(1, 50), st.floats(1e-6, 1), min_size=1, max_size=12
).map(lambda weights: {token: value / sum(weights.values()) for token, value in weights.items()})
counts = st.dictionaries(st.integers(1, 50), st.integers(0, 4096))
penalties = st.floats(-2, 2)


@given(
    distributions, counts, st.floats(0, 2), st.floats(0, 1, exclude_min=True), penalties, penalties
)
def test_shaped_probabilities_are_a_distribution(
    probabilities: dict[int, float],
    seen: dict[int, int],
    temperature: float,
    top_p: float,
    presence: float,
    frequency: float,
) -> None:
    found = shape(probabilities, seen, Sampling(temperature, top_p, presence, frequency))
    assert found.keys() <= probabilities.keys()
    assert math.fsum(found.values()) == pytest.approx(1)


@given(distributions)
def test_default_sampling_leaves_the_probabilities_unchanged(
    probabilities: dict[int, float],
) -> None:
    assert Sampling().plain
    assert shape(probabilities, {}, Sampling()) == pytest.approx(probabilities)


@given(distributions)
def test_temperature_0_and_top_p_0_leave_the_likeliest(probabilities: dict[int, float]) -> None:
    best = max(probabilities, key=probabilities.__getitem__)
    greedy = shape(probabilities, {}, Sampling(temperature=0))
    assert greedy == {best: 1.0}
    for how in (Sampling(top_p=0), Sampling(top_p=1e-9), Sampling(0, presence_penalty=1)):
        ((token, weight),) = shape(probabilities, {}, how).items()
        assert weight == 1
        assert probabilities[token] == pytest.approx(probabilities[best])


@given(distributions, st.floats(0.01, 0.99))
def test_the_nucleus_is_the_smallest_set_of_tokens_that_reaches_top_p(
    probabilities: dict[int, float], top_p: float
) -> None:
    found = shape(probabilities, {}, Sampling(top_p=top_p))
    inside = [probabilities[token] for token in found]
    outside = [value for token, value in probabilities.items() if token not in found]
    assert sum(inside) >= top_p - 1e-9
    assert sum(inside) - min(inside) < top_p + 1e-9
    assert min(inside) >= max(outside, default=0) - 1e-12
    for token, value in found.items():
        assert value == pytest.approx(probabilities[token] / sum(inside))


@given(distributions, counts, penalties, penalties)
def test_penalties_are_subtracted_from_logits(
    probabilities: dict[int, float], seen: dict[int, int], presence: float, frequency: float
) -> None:
    few = {token: count % 5 for token, count in seen.items()}
    how = Sampling(presence_penalty=presence, frequency_penalty=frequency)
    found = shape(probabilities, few, how)
    raw = {
        token: value * math.exp(-presence * (few.get(token, 0) > 0) - frequency * few.get(token, 0))
        for token, value in probabilities.items()
    }
    assert found == pytest.approx({token: v / sum(raw.values()) for token, v in raw.items()})


def test_temperature_sharpens_and_flattens() -> None:
    probabilities = {5: 0.8, 6: 0.2}
    assert shape(probabilities, {}, Sampling(temperature=0.5)) == pytest.approx(
        {5: 0.64 / 0.68, 6: 0.04 / 0.68}
    )
    assert shape(probabilities, {}, Sampling(temperature=2))[6] > 0.2
    assert shape(probabilities, {}, Sampling(temperature=1e-300)) == {5: 1.0, 6: 0.0}


# Generated texts


@pytest.mark.parametrize("how", [{}, {"temperature": 0.7}, {"top_p": 0.9}])
def test_a_seed_decides_the_text(pydoc: Model, how: dict[str, float]) -> None:
    texts = [write(pydoc, "Hello", seed, 60, **how) for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_generated_texts_differ_and_end_with_a_period(pydoc: Model) -> None:
    texts = [write(pydoc, "Hello", str(seed)) for seed in range(30)]
    assert all(text.endswith(".") for text in texts)
    assert len(set(texts)) == len(texts)


def test_greedy_text_does_not_loop_forever() -> None:
    ring = learn(
        "The bird sings the same song again.\n\nThe bird sings the same song again and again."
        "\n\nThe bird sings the same song again."
    )
    text = write(ring, "", temperature=0)
    assert 1 <= text.count("The bird") <= 3
    assert text.endswith(".")
    # A penalty makes each round differ from the round before, so the text may go on.
    assert len(write(ring, "", at_most=200, temperature=0, presence_penalty=-0.1)) > len(text)


def test_a_frequency_penalty_increases_variety(pydoc: Model) -> None:
    def variety(penalty: float) -> float:
        texts = [
            write(pydoc, "The", str(seed), 60, frequency_penalty=penalty) for seed in range(20)
        ]
        found = [list(tokens(text)) for text in texts]
        return sum(len(set(each)) for each in found) / sum(map(len, found))

    assert variety(2) > variety(0) > variety(-2)


def test_logprobs_name_the_alternatives_and_the_token(toy: Model) -> None:
    likely = toy.probabilities(toy.context(["zebra", " small"]))
    cat = toy.numbers[" cat"]
    entry = toy.logprobs(likely, cat, 1, 7)
    assert entry.tokens == [" cat"]
    assert entry.token_logprobs == pytest.approx([math.log(1 / 3)])
    (alternatives,) = entry.top_logprobs or [None]
    assert alternatives == pytest.approx({" bird": math.log(2 / 3), " cat": math.log(1 / 3)})
    assert entry.text_offset == [7]
    assert toy.logprobs(likely, cat, 0, 0).top_logprobs is None
