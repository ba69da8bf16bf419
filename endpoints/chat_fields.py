"""The body of a chat: the fields that Sluice reads. All others are sent to the host unread.

- The body is decoded to fields whose values stay undecoded, and are sent unchanged.
- The input is estimated from the messages' text and images, step by step, so that other calls make
  progress. No long list is decoded unless its items are messages or parts.
- Content that Sluice can't read counts as text: the host decides whether it is valid.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw

from completion import Chat, CompletionRequest
from concurrency.yielding import Yielder
from endpoints import openai_fields, passed_on, request_fields
from endpoints.openai_fields import UsageIn
from errors import InvalidRequest, RequestTooLarge
from gateway import field_names
from routing.replicas import PREFIX

ROUTING: Final = (
    *("model", "provider", "fallbacks", "byok_api_key", "stream_id", "stream"),
    *("resumable", "background"),
)
"""The fields of Parameters that a chat has, besides those that are counted."""
OWN: Final = frozenset(
    (
        *("provider", "fallbacks", "byok_api_key", "stream_id", "additional_params"),
        *("resumable", "background"),
    )
)
"""The fields that no host gets."""
HARMLESS: Final = frozenset(
    (
        *("audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs"),
        *("messages", "metadata", "modalities", "model", "parallel_tool_calls"),
        *("presence_penalty", "prompt_cache_key", "reasoning_effort", "response_format", "seed"),
        *("safety_identifier", "service_tier", "stop", "store", "stream", "stream_options"),
        *("temperature", "tool_choice", "tools", "top_k", "top_logprobs", "top_p", "user"),
        *("verbosity", "web_search_options"),
    )
)
"""Fields that can't request more output than max_tokens allows."""
TERMS: Final = ("service_tier", "speed", "web_search_options", "search_type")
"""The fields on which prices depend."""
INPUTS: Final = ("tools", "functions", "response_format")
"""The fields besides the messages that are part of the input."""
LONG: Final = frozenset(("messages", *INPUTS))
"""The fields that may be longer than a completion's body."""
MEDIA: Final = ("image", "audio", "video", "file", "document")
"""Words in the types of parts that aren't text."""
IMAGE_TOKENS, MOST_IMAGE_TOKENS = 1_000, 6_000
"""The tokens of an image: an estimate, and a number that few models exceed."""
BYTES_PER_MEDIA_TOKEN, LEAST_BYTES_PER_MEDIA_TOKEN = 64, 16
"""The bytes of a recording or a document, in base64, for a token: an estimate, and a lower bound
that few exceed."""
REFUSED: Final = request_fields.BEYOND_PARAMS - {"extra_body"}
"""Fields that could redirect a call. Google has a field named extra_body, which isn't refused."""
MOST_ITEMS: Final = 100_000
"""The most messages of a long body, and the most parts."""
LONGEST_SHOWN: Final = 1_000
"""The most bytes of invalid messages that an error describes."""
NULL: Final = Raw(b"null")
STEP: Final = 64 * 1024
"""The bytes of a body that are checked between two yields."""


class LongFields(msgspec.Struct):
    messages: Raw = Raw()
    tools: Raw = Raw()
    functions: Raw = Raw()
    response_format: Raw = Raw()


class ChatMessage(msgspec.Struct, gc=False):
    role: str
    content: Raw = Raw()


class ChatPart(msgspec.Struct, gc=False):
    type: str


class InputSize(msgspec.Struct):
    """The size of an input: the bytes of its text, and the tokens of everything else."""

    text: int = 0
    media: int = 0
    most_media: int = 0


Messages = Annotated[list[ChatMessage], Meta(min_length=1)]
_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_messages = msgspec.json.Decoder(Messages).decode
_parts = msgspec.json.Decoder(list[ChatPart]).decode
_raws = msgspec.json.Decoder(list[Raw]).decode
_long = msgspec.json.Decoder(LongFields).decode


def decode(body: bytes | bytearray, most_beside: int) -> dict[str, Any]:
    """Return a body's fields, with undecoded values.

    Args:
        most_beside: the most bytes of a body without the fields of LONG. An object of many fields
            takes a long time to decode.

    Raises:
        InvalidRequest: the body isn't an object, or has too many messages or parts.
        RequestTooLarge: the body has more bytes beside these fields.
        msgspec.DecodeError: the body isn't JSON.
        UnicodeDecodeError: the body isn't UTF-8. (msgspec checks only what it decodes.)
    """
    if not body.isascii():
        check_utf8(body)
    try:
        if len(body) > most_beside:
            check_long(body, most_beside)
        return _fields(body)
    except msgspec.ValidationError:
        raise InvalidRequest("The body is not an object; expected a JSON object.") from None


def check_long(body: bytes | bytearray, most_beside: int) -> None:
    """Check the numbers of messages and parts, and the size of the other fields.

    Raises what `decode` raises.
    """
    yielder = Yielder()
    for name in (b'"role"', b'"type"'):
        if body.count(name) > MOST_ITEMS:
            raise InvalidRequest(f"The body has more than {MOST_ITEMS} messages or parts.")
        yielder.yield_if_due()
    found = _long(body)
    yielder.yield_if_due()
    beside = len(body) - sum([nbytes(getattr(found, name)) for name in LONG])
    if beside > most_beside:
        raise RequestTooLarge(
            f"The body has {beside} bytes besides {', '.join(sorted(LONG))}; the limit is "
            f"{most_beside}."
        )


def check_utf8(body: bytes | bytearray) -> None:
    """Raise UnicodeDecodeError if a body isn't UTF-8. A long body is checked in steps."""
    yielder, decoder = Yielder(), getincrementaldecoder("utf-8")()
    for at in range(0, len(body), STEP):
        pending, _ = decoder.getstate()
        try:
            decoder.decode(body[at : at + STEP], final=at + STEP >= len(body))
        except UnicodeDecodeError as error:
            error.start += at - len(pending)
            raise
        yielder.yield_if_due()


def nbytes(value: Raw) -> int:
    return memoryview(value).nbytes


def parse(
    fields: dict[str, Raw], size: int
) -> tuple[request_fields.Parameters, CompletionRequest, UsageIn]:
    """Return the parameters, the request, and where its stream has usage. Raises InvalidRequest.

    Args:
        size: the bytes of the body.
    """
    fields = merge_params(fields)
    unknown = check_names(fields)
    values = {name: value for name in ROUTING if (value := value_of(fields, name)) is not None}
    count_output(fields, values)
    found = request_fields.parameters(values)
    options = value_of(fields, "stream_options")
    usage: UsageIn = "nowhere"
    if options is not None:
        usage, _ = openai_fields.read_options(options)
    measured = measure(fields)
    messages = memoryview(fields["messages"])
    start = bytes(messages[: 4 * PREFIX]).decode("utf-8", "ignore")[:PREFIX]
    text_tokens = -(-measured.text // 4)
    return (
        found,
        CompletionRequest(
            prompts=(start,),
            max_tokens=found.max_tokens,
            n=None if found.n == 1 else found.n,
            best_of=found.best_of,
            stream=bool(found.stream),
            chat=Chat(
                fields={name: value for name, value in fields.items() if name not in OWN},
                size=size,
                input_tokens=text_tokens + measured.media,
                most_input=measured.text + measured.most_media,
                stream_options=beside_usage(options),
                terms={n: value for n in TERMS if (value := value_of(fields, n)) is not None},
                loose=unknown,
            ),
        ),
        usage,
    )


def beside_usage(options: Any) -> dict[str, Any]:
    """Return a caller's stream options without those that Sluice honours itself."""
    return {n: v for n, v in (options or {}).items() if n not in openai_fields.USAGE_OPTIONS}


def value_of(fields: Mapping[str, Raw], name: str) -> Any:
    """Return a field's value; None if it is absent. Raises InvalidRequest."""
    if name not in fields:
        return None
    try:
        return msgspec.json.decode(fields[name])
    except msgspec.DecodeError as error:  # a number that is too large, which decode doesn't check
        raise InvalidRequest(f"{name} is invalid: {error}.", param=name) from None


def merge_params(fields: dict[str, Raw]) -> dict[str, Raw]:
    """Return the fields with those of additional_params. Raises InvalidRequest."""
    if "additional_params" not in fields:
        return fields
    params = value_of(fields, "additional_params")
    if params is None:
        return fields
    request_fields.check("additional_params", params, dict[str, Any])
    found = dict(fields)
    for name, value in _fields(fields["additional_params"]).items():
        if name in request_fields.BEYOND_PARAMS:
            raise InvalidRequest(f"additional_params can't set {name}.", param=name)
        if params[name] is not None and value_of(found, name) not in (None, params[name]):
            raise passed_on.two_values(name)
        if value_of(found, name) is None:
            found[name] = value
    return found


def check_names(fields: Mapping[str, Raw]) -> bool:
    """Return True if there are fields that Sluice doesn't know. Raises InvalidRequest."""
    unknown = [
        name
        for name in fields
        if name not in HARMLESS and name not in OWN and name not in field_names.COUNTED
    ]
    if unknown:
        passed_on.refuse_many(len(unknown))
    for name in unknown:
        if len(name) > passed_on.LONGEST_NAME or name in REFUSED:
            raise request_fields.unknown(name)
        request_fields.refuse_lookalike(name)
    return bool(unknown)


def count_output(fields: Mapping[str, Raw], values: dict[str, Any]) -> None:
    """Add the fields that limit the output to `values`, under Sluice's names.

    A negative limit means no limit, which some engines accept. Raises InvalidRequest.
    """
    for name in fields:
        if name in field_names.WRAPPERS and isinstance(inner := value_of(fields, name), dict):
            passed_on.pass_on({name: inner}, values)
        field = field_names.COUNTED.get(name)
        if field is None:
            continue
        value = value_of(fields, name)
        if value is None or (field == "max_tokens" and isinstance(value, int) and value < 0):
            continue
        if name == field and name not in values:
            values[name] = value
        else:
            passed_on.count_as(field, name, value, values)


def measure(fields: Mapping[str, Raw]) -> InputSize:
    """Return the size of the input. Raises InvalidRequest if there are no valid messages."""
    data, yielder = fields.get("messages", NULL), Yielder()
    size = InputSize(
        sum([nbytes(fields[name]) for name in ("messages", *INPUTS) if name in fields])
    )
    try:
        messages = _messages(data)
    except msgspec.DecodeError:
        raise invalid_messages(data) from None
    for message in messages:
        yielder.yield_if_due()
        if memoryview(message.content)[:1].tobytes() == b"[":
            measure_media(message.content, size, yielder)
    return size


def invalid_messages(data: Raw) -> InvalidRequest:
    """Return the error for messages that aren't valid.

    It describes only short ones, because a long list takes a long time to decode.
    """
    takes, found = request_fields.TAKES["messages"], ""
    if data == NULL:
        return InvalidRequest(f"messages is missing; expected {takes}.", param="messages")
    if nbytes(data) <= LONGEST_SHOWN:
        found = f"got {request_fields.shown('messages', msgspec.json.decode(data))}; "
    return InvalidRequest(f"messages: {found}expected {takes}.", param="messages")


def measure_media(content: Raw, size: InputSize, yielder: Yielder) -> None:
    """Count a message's images, recordings and documents as media instead of as text.

    The types are decoded first, because that stops at the first item that isn't a part. A long list
    of such items would take much memory.
    """
    try:
        kinds = [part.type for part in _parts(content)]
    except msgspec.DecodeError:
        return
    yielder.yield_if_due()
    for kind, part in zip(kinds, _raws(content), strict=True):
        yielder.yield_if_due()
        if kind == "text" or not any(word in kind for word in MEDIA):
            continue
        data = nbytes(part)
        size.text -= data
        size.media += IMAGE_TOKENS
        size.most_media += MOST_IMAGE_TOKENS
        if "image" not in kind:
            size.media += data // BYTES_PER_MEDIA_TOKEN
            size.most_media += data // LEAST_BYTES_PER_MEDIA_TOKEN
