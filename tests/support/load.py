"""A load of many clients, each with a random mixture of calls, and the expected results.

- A kind of call has the request, the provider's script, the client's behaviour, and the expected
  row of the ledger.
- Each call has its own request id, which is also in its prompt. So tests can find the call in the
  ledger and at the provider.
- Nothing is retried.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

from tests.support import calls
from tests.support import fake as fp
from tests.support.pace import HANG_S
from tests.support.raw_client import Frame, RawClient
from tests.support.servers import Server

NATIVE, OPENAI = calls.COMPLETIONS, "/v1/completions"
FACES = (NATIVE, OPENAI)
CHATS = ("/api/v1/chat/completions", "/v1/chat/completions")
"""The paths of chats on the native face and on OpenAI's."""
Act: TypeAlias = Literal["read", "stop", "leave"]
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Kind(NamedTuple):
    """A kind of call.

    Attributes:
        steps: The provider's script.
        reason: The end_reason of the row. None if Sluice rejects the call, which then has no row.
        status: The status of the response and of the row.
        act: What the client does after the first text: read on, stop the stream, or disconnect.
        exact: True if the usage is the provider's, False if it is an estimate.
        key: The name of the key.
        attempts: The number of attempts in the row.
        more: Additional fields of the body. None removes a field.
        weight: The relative frequency of this kind.
        after: The most seconds that the client waits before it acts. The wait is random.
        chats: True for a chat, False for a completion.
    """

    name: str
    steps: Sequence[fp.Step] = ()
    reason: str | None = "completed"
    status: int = 200
    stream: bool = False
    act: Act = "read"
    exact: bool = True
    model: str = "fake/m"
    key: str = "main"
    attempts: int = 1
    more: Mapping[str, Any] = NOTHING
    weight: int = 10
    after: float = 0.0
    chats: bool = False


class Sent:
    """A call and its response.

    Attributes:
        status: The response's status. None if the client received none.
        whole: True if the client received the complete response.
        done: True if the stream ended with [DONE].
        error: The code of an error in the stream.
        usage: The input and output tokens in the response.
        failure: The client's exception as text. Empty if there was none.
    """

    def __init__(self, kind: Kind, path: str) -> None:
        self.kind, self.path = kind, path
        self.id = f"{kind.name}.{uuid.uuid4().hex}"
        self.status: int | None = None
        self.headers: Mapping[str, str] = NOTHING
        self.answer: Any = None
        self.whole = False
        self.done = False
        self.error: str | None = None
        self.usage: tuple[int, int] | None = None
        self.failure = ""

    def __repr__(self) -> str:
        return f"<{self.id} {self.status} whole={self.whole} {self.failure}>"


class Load:
    """A number of clients that each make one call after another: `with load.running(): ...`"""

    def __init__(
        self,
        server: Server,
        keys: Mapping[str, str],
        kinds: Sequence[Kind],
        *,
        clients: int = 64,
        pause: float = 0.1,
    ) -> None:
        """Prepare the clients. `pause` is the most seconds between two calls of a client."""
        self.sent: list[Sent] = []
        self._server, self._keys, self._kinds, self._pause = server, keys, kinds, pause
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(number),))
            for number in range(clients)
        ]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in self._threads:
                thread.join()

    def _run(self, chance: random.Random) -> None:
        weights = [kind.weight for kind in self._kinds]
        while not self._stopping.wait(chance.uniform(0, self._pause)):
            [kind] = chance.choices(self._kinds, weights)
            sent = Sent(kind, chance.choice(CHATS if kind.chats else FACES))
            self.sent.append(sent)
            play(self._server, self._keys[kind.key], sent)


def play(server: Server, key: str, sent: Sent) -> Sent:
    """Make a call as its kind demands, to its end. Return the call with its results."""
    kind = sent.kind
    try:
        with RawClient(server.port, key=key, timeout=HANG_S) as client:
            headers = {"X-Request-ID": sent.id, "X-Stream-ID": sent.id}
            client.request("POST", sent.path, body(sent), headers)
            if kind.act == "leave" and not kind.stream:
                time.sleep(0.2 + random.uniform(0, kind.after))
                return sent
            head = client.read_head()
            sent.status, sent.headers = head.status, head.headers
            if head.headers["content-type"].startswith("text/event-stream"):
                read_stream(server, key, client, sent)
            else:
                sent.answer = client.json()
                sent.whole = True
                sent.usage = usage_in(sent.answer)
    except (OSError, EOFError) as failure:
        sent.failure = repr(failure)
    return sent


def body(sent: Sent) -> dict[str, Any]:
    text = f"{sent.kind.name} {sent.id}"
    asked: Any = [{"role": "user", "content": text}] if sent.kind.chats else text
    fields: dict[str, Any] = {"model": sent.kind.model}
    fields["messages" if sent.kind.chats else "prompt"] = asked
    if sent.kind.stream:
        fields["stream"] = True
        if sent.path in (OPENAI, CHATS[1]):
            fields["stream_options"] = {"include_usage": True}
    fields |= sent.kind.more
    return {name: value for name, value in fields.items() if value is not None}


def read_stream(server: Server, key: str, client: RawClient, sent: Sent) -> None:
    begun = False
    for frame in client.frames():
        if frame.data == "[DONE]":
            sent.done = True
        elif frame.data is not None:
            sent.usage = usage_in(frame.json) or sent.usage
            sent.error = failed(frame.json)
            if not begun and has_text(frame):
                begun = True
                if sent.kind.act != "read":
                    time.sleep(random.uniform(0, sent.kind.after))
                if sent.kind.act == "leave":
                    return
                if sent.kind.act == "stop":
                    assert calls.stop(server, sent.id, key).status == 200
    sent.whole = True


def has_text(frame: Frame) -> bool:
    choices = frame.json.get("choices", ())
    return any(choice.get("text") or choice.get("delta", {}).get("content") for choice in choices)


def failed(frame: dict[str, Any]) -> str | None:
    """Return the code of the error in a frame of either face, or None."""
    error = frame.get("error")
    code = error["code"] if isinstance(error, dict) else error and frame["code"]
    return code and str(code)


def usage_in(answer: dict[str, Any]) -> tuple[int, int] | None:
    """Return the input and output tokens in a response or a frame of either face, or None."""
    if answer.get("type") == "usage_final":
        return answer["input_tokens"], answer["output_tokens"]
    usage = answer.get("usage") or {}
    for names in (("tokens_prompt", "tokens_completion"), ("prompt_tokens", "completion_tokens")):
        if names[0] in usage:
            return usage[names[0]], usage[names[1]]
    return None


def scripts(kinds: Sequence[Kind]) -> dict[str, Sequence[fp.Step]]:
    return {kind.name: kind.steps for kind in kinds if kind.steps}
