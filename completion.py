"""The vocabulary of completions: requests and events, independent of any wire format.

- The module contains only values: no I/O, and nothing about HTTP, faces or providers.
- A call produces a sequence of events. `fold` turns them into a Completion, so that streams and
  whole completions share one code path.
- Events travel in batches, which are lists of the events that arrived together, so that one
  wake-up and one write serve many tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec

Prompt: TypeAlias = str | tuple[int, ...]
FinishReason: TypeAlias = Literal["stop", "length", "content_filter", "cancelled"]
EndReason: TypeAlias = Literal[
    "completed", "stopped", "client_gone", "provider_error", "deadline", "shutdown"
]
"""Why a call ended."""

StreamKey: TypeAlias = tuple[str, str]
"""The identity of an active call: the id of its API key, and its stream id, which is unique only
among that key's calls."""

TargetKey: TypeAlias = tuple[str, str, int]
"""The identity of a target: the provider, its model ("" means all models), and the number of the
operator's key (0 with no model means all keys). A replica is part of the provider: "vllm@HOST"."""


class SourceFile(msgspec.Struct, frozen=True):
    """Another file of the repository in which a text is filled in."""

    path: str
    text: str


class Chat(msgspec.Struct, kw_only=True, eq=False):
    """The body of a chat request, which goes to the provider field by field, undecoded.

    A body may have many megabytes. It is released as soon as it can't be sent again.
    """

    fields: dict[str, msgspec.Raw]
    """The caller's fields in their order, without Sluice's own. Empty once they are released."""
    size: int
    """The bytes of the body."""
    input_tokens: int
    """An estimate of the tokens of the messages, with their images, and of the tools."""
    most_input: int
    """An upper bound of these tokens, for any tokenizer. Those of images are an estimate."""
    stream_options: dict[str, Any] = {}
    """The caller's own stream options."""
    terms: dict[str, Any] = {}
    """The fields on which the price may depend."""
    loose: bool = False
    """True if there are fields that Sluice doesn't know."""
    released: Callable[[], None] = lambda: None
    """A callback that runs once, when the fields are released."""

    def release(self) -> None:
        self.fields = {}
        released, self.released = self.released, lambda: None
        released()


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A validated request from any face. None, () and {} mean that a parameter is unset.

    The faces leave a parameter unset if its value is a no-op (n 1, best_of 1, penalties 0, top_p 1,
    empty logit_bias), so that a target without that parameter can still serve the request.
    """

    prompts: tuple[Prompt, ...]
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int | None = None
    best_of: int | None = None
    logprobs: int | None = None
    """The number of alternatives per token; 0 requests only the log probability of the chosen
    token."""
    echo: bool = False
    suffix: str | None = None
    logit_bias: dict[str, float] = {}
    user: str | None = None
    stream: bool = False
    extra: dict[str, Any] = {}
    """Parameters that Sluice doesn't know, sent to the provider unchanged."""
    openai_extra: dict[str, Any] = {}
    """Unknown parameters from the top level of an OpenAI request, sent unchanged, and only to
    OpenAI-compatible hosts."""
    unused: tuple[str, ...] = ()
    """The names of hints in the caller's request that no target gets."""
    files: tuple[SourceFile, ...] = ()
    """Other files of the repository, for a request with a suffix."""
    infill: dict[str, Any] = {}
    """The body of a request to llama.cpp's /infill, as the caller sent it. A llama.cpp server gets
    it unchanged except for the model, and its answer is passed on as Opaque events. Other targets
    get the other fields of the request."""
    chat: Chat | None = None
    """The body of a chat, whose answer is passed on as Opaque events. `prompts` then has only the
    start of its messages, for the choice of a replica. Of the other fields, max_tokens, n and
    stream are set."""

    @property
    def passes_on(self) -> bool:
        """Return True if the provider gets parameters that Sluice doesn't know. They may add fields
        to the answer, which are passed on too."""
        return bool(self.extra or self.openai_extra or self.infill or self.chat)

    @property
    def choices(self) -> int:
        return len(self.prompts) * (self.n or 1)


FIELDS: Final = CompletionRequest.__struct_fields__
DEFAULTS: Final = msgspec.structs.astuple(CompletionRequest(prompts=()))


def asked_for(request: CompletionRequest) -> dict[str, Any]:
    """Return the fields that a request sets, with their values.

    A field counts as set if it differs from its default, so 0 counts, but None, False, () and {}
    don't.
    """
    values = msgspec.structs.astuple(request)
    return {
        name: value
        for name, value, default in zip(FIELDS, values, DEFAULTS, strict=True)
        if value != default
    }


def named(
    request: CompletionRequest, names: Mapping[str, str], lacks: Container[str] = ()
) -> dict[str, Any]:
    """Return the fields that a request sets, under a host's names for them.

    Args:
        names: Sluice's names -> the host's names. Fields without an entry are left out.
        lacks: Sluice's names of the parameters that the host doesn't support, also left out.
    """
    asked = asked_for(request)
    return {
        theirs: asked[ours] for ours, theirs in names.items() if ours in asked and ours not in lacks
    }


class Logprobs(msgspec.Struct, frozen=True):
    """Log probabilities in the shape of OpenAI's legacy completions.

    The lists are parallel, with one entry per token. Log probabilities are natural logarithms;
    text_offset counts characters from the start of the choice's text.
    """

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] = []


class Usage(msgspec.Struct, frozen=True):
    """The tokens of a call, and the other units that its provider charges for.

    Cached tokens are part of the input, reasoning tokens part of the output.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    source: Literal["provider", "estimate"] = "provider"
    cache_write_1h_tokens: int = 0
    """The part of cache_write_tokens that the cache keeps for an hour."""
    citation_tokens: int = 0
    """Tokens of cited sources, in addition to the input."""
    searches: int = 0
    """The number of web searches."""
    tier: str | None = None
    """The service tier that the provider reports to have served; None if it reports none."""
    speed: str | None = None
    """The speed that the provider reports to have served; None if it reports none."""
    cost_nano: int | None = None
    """The cost that the provider reports, in nano-dollars."""

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


COUNTS: Final = tuple(
    name for name in Usage.__struct_fields__ if name not in ("source", "tier", "speed", "cost_nano")
)
"""The fields of Usage that are added up when usages are."""


def agreed(usages: Iterable[Usage]) -> dict[str, Any]:
    """Return the tier, the speed and the reported cost of several usages together.

    A tier or speed in which they differ is None, and so is the cost if one has none.
    """
    several = list(usages)
    tiers, speeds = {usage.tier for usage in several}, {usage.speed for usage in several}
    costs = [usage.cost_nano for usage in several if usage.cost_nano is not None]
    return {
        "tier": tiers.pop() if len(tiers) == 1 else None,
        "speed": speeds.pop() if len(speeds) == 1 else None,
        "cost_nano": sum(costs) if costs and len(costs) == len(several) else None,
    }


def total(usages: Iterable[Usage]) -> Usage:
    """Return the sum of some usages. It is an estimate if any of them with tokens is one."""
    several = list(usages)
    if len(several) == 1 and (several[0].total_tokens or several[0].source == "provider"):
        return several[0]
    sums = {name: sum(getattr(usage, name) for usage in several) for name in COUNTS}
    estimated = any(usage.source == "estimate" and usage.total_tokens for usage in several)
    source: Literal["provider", "estimate"] = "estimate" if estimated else "provider"
    return Usage(**sums, **agreed(several), source=source)


PIECE: Final = 64 * 1024
"""The most characters of a prompt that one event echoes. Encoding and sending a piece is quick, and
other calls make progress between two pieces."""


class Started(msgspec.Struct, frozen=True):
    """The provider's acceptance of the call.

    The model, the tokens of input, the service tier and the speed are those that the provider
    reports, if any.
    """

    model: str | None = None
    input_tokens: int | None = None
    tier: str | None = None
    speed: str | None = None


class Delta(msgspec.Struct, frozen=True, gc=False):
    """A piece of one choice's text."""

    index: int
    text: str
    logprobs: Logprobs | None = None


class Opaque(msgspec.Struct, frozen=True, gc=False):
    """A piece of an answer in the provider's own format, which the client gets as it is.

    It is counted and delivered like text, and nothing looks into it.

    data: one JSON value, on one line.
    index: the choice; NO_CHOICE for a chunk of a chat that has only the usage.
    text_size: the bytes of text and reasoning in it, in UTF-8.
    visible: whether it shows the client something: text, or the end of a choice.
    reports: True if a chunk of a chat has usage beside a choice.
    ends: the choices whose finish reason is in it. Their Finished events may come later, or never.
    """

    data: bytes
    index: int = 0
    text_size: int = 0
    visible: bool = True
    reports: bool = False
    ends: tuple[int, ...] = ()


NO_CHOICE: Final = -1


class Thought(msgspec.Struct, frozen=True, gc=False):
    """A piece of the model's reasoning, which is output but not text. No client sees it.

    Where Sluice emulates stop sequences, text that it holds back or cuts off is a Thought too. When
    it shows that text after all, another Thought takes it back, with negative numbers.

    size: the bytes of the piece in UTF-8.
    pieces: the number of pieces that the provider sent.
    """

    size: int
    pieces: int = 1


class Finished(msgspec.Struct, frozen=True, eq=False):
    """The end of one choice. Text may follow, and then another Finished: the last one counts.

    with_text: whether text or reasoning came in the same chunk, so that more may follow. It says
        how the event arrived, not what it means, so it doesn't count when events are compared.
    """

    index: int
    reason: FinishReason
    with_text: bool = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Finished) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[int, FinishReason]:
        return self.index, self.reason


class Used(msgspec.Struct, frozen=True, eq=False):
    """The usage of the call so far. The last one that a provider reports is final.

    with_text: as in `Finished`.
    """

    usage: Usage
    with_text: bool = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Used) and self.usage == other.usage

    def __hash__(self) -> int:
        return hash(self.usage)


class Added(msgspec.Struct, frozen=True):
    """Fields of the provider's answer that Sluice doesn't know, for a request that passes
    parameters on. They belong to the next text or finish of their choice.

    index: the choice. Of several upstream calls, that of the call's first choice.
    size: the bytes of the fields in JSON.
    top: whether the fields are beside the choices.
    """

    index: int
    fields: dict[str, Any]
    size: int = 0
    top: bool = False


def merge_fields(into: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """Add later fields of one choice: lists are concatenated, other values replaced."""
    for name, value in fields.items():
        before = into.get(name)
        if not isinstance(value, list):
            into[name] = value
        elif isinstance(before, list):
            before.extend(value)
        else:
            into[name] = list(value)


def combined_fields(calls: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields of several upstream calls together, in the calls' order.

    Equal values stay one value. Of other values, lists and objects are joined, and the last one of
    the rest counts.
    """
    found: dict[str, Any] = {}
    for fields in calls:
        for name, value in fields.items():
            before = found.get(name)
            if isinstance(before, list) and isinstance(value, list) and before != value:
                found[name] = before + value
            elif isinstance(before, dict) and isinstance(value, dict):
                found[name] = before | value
            else:
                found[name] = value
    return found


Event: TypeAlias = Started | Delta | Opaque | Thought | Finished | Used | Added
Batch: TypeAlias = list[Event]
"""The events that arrived together. An empty batch says that the provider sent something, for
example a ping, although there is no event in it."""


def has_output(events: Iterable[Event]) -> bool:
    """Return True if there is text or reasoning among the events."""
    return any(
        isinstance(event, Delta | Thought) or (isinstance(event, Opaque) and event.text_size)
        for event in events
    )


class Choice(msgspec.Struct, frozen=True):
    index: int
    text: str
    finish_reason: FinishReason | None
    logprobs: Logprobs | None = None


class Completion(msgspec.Struct, frozen=True):
    """A call's result. usage is None if the provider didn't report any."""

    model: str | None
    choices: tuple[Choice, ...]
    usage: Usage | None
    input_tokens: int | None = None
    added: dict[str, Any] = {}
    """The fields of Added events that are beside the choices."""
    added_to: dict[int, dict[str, Any]] = {}
    """The fields of Added events of each choice."""
    opaque: tuple[bytes, ...] = ()
    """The data of Opaque events. The texts of the choices are then in them."""


def fold(events: Iterable[Event]) -> Completion:
    """Combine events into a completion, whose choices are in the order of their index."""
    model: str | None = None
    input_tokens: int | None = None
    usage: Usage | None = None
    texts: dict[int, list[str]] = {}
    logprobs: dict[int, list[Logprobs]] = {}
    reasons: dict[int, FinishReason] = {}
    added: dict[int, dict[str, Any]] = {}
    tops: dict[int, dict[str, Any]] = {}
    opaque: list[bytes] = []
    for event in events:
        if isinstance(event, Delta):
            texts.setdefault(event.index, []).append(event.text)
            if event.logprobs is not None:
                logprobs.setdefault(event.index, []).append(event.logprobs)
        elif isinstance(event, Opaque):
            opaque.append(event.data)
        elif isinstance(event, Finished):
            reasons[event.index] = event.reason
        elif isinstance(event, Used):
            usage = event.usage
        elif isinstance(event, Added):
            kind = tops if event.top else added
            merge_fields(kind.setdefault(event.index, {}), event.fields)
        elif isinstance(event, Started):
            model = event.model or model
            input_tokens = event.input_tokens
    choices = tuple(
        Choice(
            index,
            "".join(texts.get(index, ())),
            reasons.get(index),
            join_logprobs(logprobs[index]) if index in logprobs else None,
        )
        for index in sorted(texts.keys() | reasons.keys())
    )
    top = combined_fields(tops[index] for index in sorted(tops))
    return Completion(model, choices, usage, input_tokens, top, added, tuple(opaque))


def join_logprobs(parts: list[Logprobs]) -> Logprobs:
    """Concatenate consecutive log probabilities of one choice."""
    if len(parts) == 1:
        return parts[0]
    top = [part.top_logprobs or [None] * len(part.tokens) for part in parts]
    return Logprobs(
        tokens=[token for part in parts for token in part.tokens],
        token_logprobs=[value for part in parts for value in part.token_logprobs],
        top_logprobs=(
            [entry for entries in top for entry in entries]
            if any(part.top_logprobs is not None for part in parts)
            else None
        ),
        text_offset=[offset for part in parts for offset in part.text_offset],
    )


def cut(text: str) -> Iterator[str]:
    """Yield a text in pieces of at most PIECE characters."""
    for at in range(0, len(text), PIECE):
        yield text[at : at + PIECE]


def flatten(batches: Iterable[Batch]) -> Iterator[Event]:
    for batch in batches:
        yield from batch


def estimate_tokens(text: str, pieces: int = 0) -> int:
    """Estimate the number of tokens in a text, for providers that don't report usage.

    The estimate is one token per four UTF-8 bytes, but at least one for each of the `pieces` in
    which the provider sent the text.
    """
    return max(pieces, -(-len(text.encode("utf-8", "surrogatepass")) // 4))


def utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def prompt_tokens(prompt: Prompt) -> int:
    """Return the number of tokens in a prompt: exact for token ids, estimated for text."""
    return estimate_tokens(prompt) if isinstance(prompt, str) else len(prompt)


class TokenSource(msgspec.Struct, frozen=True, kw_only=True):
    """The input of a tokenizer: a text, or the messages of a chat."""

    text: str | None = None
    messages: list[Any] | None = None
    add_special: bool
    """True if special tokens are added, such as one for the beginning."""
    parse_special: bool = True
    """True if the names of special tokens in the text stand for these tokens."""
    strings: bool = False
    """True if the answer has the strings of the tokens too."""
    pieces: bool = False
    """True if the answer has llama.cpp's pieces: each token with its id and its text or bytes."""
    chat: dict[str, Any] = {}
    """Other parameters of a chat, under vLLM's names."""


class TokenList(msgspec.Struct, frozen=True):
    ids: list[int]
    strings: list[str] | None = None
    pieces: list[LlamaCppPiece] | None = None
    max_model_len: int | None = None
    """The most tokens that the model takes; None if the host doesn't report it."""


class LlamaCppPiece(msgspec.Struct, frozen=True):
    """A token of llama.cpp. A piece that isn't valid UTF-8 is a list of bytes."""

    id: int
    piece: str | list[int]


CallState: TypeAlias = Literal["queued", "waiting", "answering"]
"""The progress of a call: before its first attempt, before its first visible event, or after it."""
CALL_STATES: tuple[CallState, ...] = get_args(CallState)


class Summary(msgspec.Struct, frozen=True):
    """An active call's entry in the list of active calls. opened_at is a Unix time in seconds."""

    stream_id: str
    provider: str
    model: str
    opened_at: float
    input_tokens: int
    output_tokens: int
    # Processes of earlier releases don't send the fields below.
    key_id: str = ""
    request_id: str = ""
    endpoint: str = ""
    streamed: bool = False
    state: CallState = "queued"
    resumable: bool = False
