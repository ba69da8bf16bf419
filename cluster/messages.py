"""Questions and answers between processes, through Redis.

A question stays in a hash of the process that must answer it until that process has answered. A
published message only wakes the recipient.

- Both sides also poll, so a lost message delays an answer, but loses nothing.
- If an answer is missing, the result is Unavailable, never a guess.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import msgspec
import redis

from cluster.redis_client import RedisAway, RedisClient
from errors import Unavailable

ANSWER_S, LOOK_S = 3.0, 0.5
"""The time to wait for an answer, and the interval at which to poll for it."""
TTL_S = 30
QUESTIONS, ANSWER, CHANNEL = "sluice:questions:", "sluice:answer:", "sluice:channel:"


WHOLE: Final = ""
"""The key id in a question about the whole process."""


class Question(NamedTuple):
    """A question about a key's calls (stop one of them, or list them) or about the whole process.

    A question about the whole process has the key id WHOLE, and its subject as the stream id.
    A process of an earlier release takes that for the stop of an unknown call, and answers False.
    """

    asker: str
    """The name of the process that waits for the answer."""
    key_id: str
    stream_id: str | None = None
    """The call to stop. None requests a list of the key's calls."""
    guess: bool = False
    """True if Redis doesn't know which process has the call, so every process is asked."""


class Messages:
    """The questions and answers of one process, whose unique name is `me`."""

    def __init__(
        self, redis_client: RedisClient, me: str, reply: Callable[[Question], Any]
    ) -> None:
        """Make the messages of a process.

        Args:
            reply: answers a question of another process. It must not wait, and its result must be
                JSON-serializable.
        """
        self._redis = redis_client
        self._me = me
        self._reply = reply
        self._waiting: dict[str, threading.Event] = {}
        self._closed = False

    def close(self, client: Any) -> None:
        """Delete this process's questions, and wake its listener so that it stops."""
        self._closed = True
        client.delete(self.questions)
        client.publish(CHANNEL + self._me, b"")

    @property
    def questions(self) -> str:
        """The Redis key of the hash with the questions to this process."""
        return QUESTIONS + self._me

    def ask_all(
        self, owners: Iterable[str], question: Question, *, partly: bool = False
    ) -> list[Any]:
        """Ask some processes, and return their answers.

        Args:
            partly: whether the answers of some processes may be missing.

        Raises:
            Unavailable: an answer is missing, or Redis is unavailable.
        """
        tokens = {new_token(): owner for owner in owners}

        def leave(client: Any) -> None:
            with client.pipeline(transaction=False) as pipe:
                for token, owner in tokens.items():
                    pipe.hset(QUESTIONS + owner, token, msgspec.json.encode(question))
                    pipe.expire(QUESTIONS + owner, TTL_S)
                    pipe.publish(CHANNEL + owner, b"")
                pipe.execute()

        if not tokens:
            return []
        with self.expecting(*tokens):
            run(self._redis, leave)
            until = time.monotonic() + ANSWER_S
            answers = []
            for token in tokens:
                try:
                    answers.append(self.answer(token, until))
                except Unavailable:
                    if not partly:
                        raise
            return answers

    @contextmanager
    def expecting(self, *tokens: str) -> Iterator[None]:
        """Accept the answers to some questions while the context is active."""
        self._waiting |= {token: threading.Event() for token in tokens}
        try:
            yield
        finally:
            for token in tokens:
                del self._waiting[token]

    def answer(self, token: str, until: float | None = None) -> Any:
        """Wait for the answer to a question.

        Args:
            token: the id of the question, which must be among those of `expecting`.
            until: the monotonic time to give up; by default in ANSWER_S.

        Raises:
            Unavailable: there was no answer in time, or Redis is unavailable.
        """
        until = time.monotonic() + ANSWER_S if until is None else until
        woken = self._waiting[token]
        while (left := until - time.monotonic()) > 0:
            woken.wait(min(left, LOOK_S))
            woken.clear()
            text = run(self._redis, lambda client: client.get(ANSWER + token))
            if text is not None:
                return msgspec.json.decode(text)
        raise Unavailable("Another process of this server didn't respond in time. Try again.")

    def listener(self) -> Any:
        """Return a connection that receives this process's messages. Raises RedisError."""
        listener = self._redis.listener()
        listener.subscribe(CHANNEL + self._me)
        return listener

    def listen(self, listener: Any, until: float) -> None:
        """Process messages until a monotonic time. Raises RedisAway or RedisError."""
        while (left := until - time.monotonic()) > 0 and not self._closed:
            message = listener.get_message(timeout=left)
            if message is None:
                continue
            waiting = self._waiting.get(message["data"].decode())
            if waiting is not None:
                waiting.set()
            elif not message["data"]:
                self.reply_to(self._redis.run(self._look))

    def _look(self, client: Any) -> dict[bytes, bytes]:
        return client.hgetall(self.questions)  # type: ignore[no-any-return]

    def reply_to(self, asked: dict[bytes, bytes]) -> None:
        """Answer questions, given as token -> JSON. Raises RedisAway."""
        answers = []
        for token, text in asked.items():
            question = msgspec.json.decode(text, type=Question)
            answers.append((token, question.asker, msgspec.json.encode(self._reply(question))))

        def leave(client: Any) -> None:
            with client.pipeline(transaction=False) as pipe:
                for token, asker, answer in answers:
                    pipe.set(ANSWER.encode() + token, answer, ex=TTL_S)
                    pipe.hdel(self.questions, token)
                    pipe.publish(CHANNEL + asker, token)
                pipe.execute()

        if answers:
            self._redis.run(leave)


def run(redis_client: RedisClient, work: Callable[[Any], Any]) -> Any:
    """Run the work with a client, and return its result. Raises Unavailable."""
    try:
        return redis_client.run(work)
    except RedisAway:
        raise Unavailable(
            "This server can't reach its other processes at the moment. Try again."
        ) from None


def new_token() -> str:
    return secrets.token_hex(8)


def close(listener: Any) -> None:
    """Close a connection in any state."""
    try:
        listener.close()
    except (redis.RedisError, OSError):
        return
