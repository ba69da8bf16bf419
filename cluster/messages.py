"""What one process asks another through Redis, and its answer.

A question lies with its owner's others until it is answered, and a message only wakes who is meant;
both sides also look by themselves, so a message that is lost makes them late, and loses nothing.
Rules that hold here: an answer that doesn't come in time is Unavailable, never a guess.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
import redis

from cluster.redis_client import RedisAway, RedisClient
from errors import Unavailable

ANSWER_S, LOOK_S = 3.0, 0.5
"""How long who asks waits, and how often it looks for an answer whose message was lost."""
TTL_S = 30
QUESTIONS, ANSWER, CHANNEL = "sluice:questions:", "sluice:answer:", "sluice:channel:"


class Question(NamedTuple):
    """stream_id: of the call to stop; None: which calls does the key have. asker: whom to wake.
    guess: Redis doesn't know who has the call."""

    asker: str
    key_id: str
    stream_id: str | None = None
    guess: bool = False


class Messages:
    """The questions and answers of one process, whose name is `me`."""

    def __init__(
        self, redis_client: RedisClient, me: str, reply: Callable[[Question], Any]
    ) -> None:
        """reply: answers another's question, as JSON can have it, without waiting."""
        self._redis = redis_client
        self._me = me
        self._reply = reply
        self._waiting: dict[str, threading.Event] = {}
        self._closed = False

    def close(self, client: Any) -> None:
        """Leave nothing, and wake who listens."""
        self._closed = True
        client.delete(self.questions)
        client.publish(CHANNEL + self._me, b"")

    @property
    def questions(self) -> str:
        """Where the others leave their questions."""
        return QUESTIONS + self._me

    def ask_all(self, owners: Iterable[str], question: Question) -> list[Any]:
        """The answers of some processes. Raises Unavailable."""
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
            return [self.answer(token, until) for token in tokens]

    @contextmanager
    def expecting(self, *tokens: str) -> Iterator[None]:
        """While answers may come."""
        self._waiting |= {token: threading.Event() for token in tokens}
        try:
            yield
        finally:
            for token in tokens:
                del self._waiting[token]

    def answer(self, token: str, until: float | None = None) -> Any:
        """What was answered. Raises Unavailable when nothing was, in time."""
        until = time.monotonic() + ANSWER_S if until is None else until
        woken = self._waiting[token]
        while (left := until - time.monotonic()) > 0:
            woken.wait(min(left, LOOK_S))
            woken.clear()
            told = run(self._redis, lambda client: client.get(ANSWER + token))
            if told is not None:
                return msgspec.json.decode(told)
        raise Unavailable("The process that has this stream doesn't answer. Try again.")

    def listener(self) -> Any:
        """A connection on which messages for this process come. Raises RedisError."""
        listener = self._redis.listener()
        listener.subscribe(CHANNEL + self._me)
        return listener

    def listen(self, listener: Any, until: float) -> None:
        """Do what messages ask for. Raises RedisAway, RedisError."""
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
        """Answer questions, by their tokens. Raises RedisAway."""
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
    """What the work returns. Raises Unavailable."""
    try:
        return redis_client.run(work)
    except RedisAway:
        raise Unavailable(
            "This process doesn't have the stream, and others can't be asked now. Try again."
        ) from None


def new_token() -> str:
    return secrets.token_hex(8)


def close(listener: Any) -> None:
    """Give a connection up, in whatever state it is."""
    try:
        listener.close()
    except (redis.RedisError, OSError):
        return
