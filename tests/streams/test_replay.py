"""Tests of streams/replay.py: what followers see, whatever the log and the connection do."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from errors import ClientGone, InvalidRequest, RateLimited, SluiceError, UpstreamError
from streams.replay import KEEP_ALIVE, MOST_FOLLOWERS, OPENED, About, Ending, Follower, Replay
from streams.replay_log import FRAME
from tests.support.pace import HANG_S

ABOUT = About("r-1", 0.0, "in_progress", "sim", "m")


@pytest.fixture
def replay() -> Replay:
    return Replay(("key_1", "s-1"), "native", lambda: ABOUT)


def frame(number: int) -> bytes:
    return b"data: %d\n\n" % number


def append(replay: Replay, *numbers: int) -> None:
    for number in numbers:
        replay.log.append(FRAME, frame(number))
    replay.wake()


def close(replay: Replay, refusal: SluiceError | None = None) -> None:
    replay.close(Ending(ABOUT, (b"{}",), refusal=refusal))


def follow(
    replay: Replay, after: int = 0, client: socket.socket | None = None, keepalive: float = 1e9
) -> Follower:
    return replay.follow(after, client, missed=False, keepalive=keepalive)


def alone(replay: Replay) -> float | None:
    return replay.alone_since


def frames(follower: Follower) -> Iterator[bytes]:
    return follower.frames(lambda error: b"error: " + error.code.encode())


def test_a_follower_gets_what_was_missed_then_live_then_the_end(replay: Replay) -> None:
    append(replay, 1, 2)
    found = frames(follow(replay, 1))
    assert next(found) == b"id: 2\n" + frame(2)
    append(replay, 3)
    assert next(found) == b"id: 3\n" + frame(3)
    append(replay, 4)
    close(replay)
    assert list(found) == [b"id: 4\n" + frame(4)]
    assert replay.followers == ()


def test_a_follower_without_news_opens_with_a_comment(replay: Replay) -> None:
    found = frames(follow(replay))
    assert next(found) == OPENED
    close(replay)
    assert list(found) == []


def test_a_follower_in_another_thread_is_woken(replay: Replay) -> None:
    seen: list[bytes] = []
    follower = follow(replay)
    thread = threading.Thread(target=lambda: seen.extend(frames(follower)))
    thread.start()
    for number in range(1, 200):
        append(replay, number)
    close(replay)
    thread.join(HANG_S)
    text = b"".join(seen).removeprefix(OPENED)
    assert text == b"".join(b"id: %d\n" % n + frame(n) for n in range(1, 200))


def test_a_follower_that_falls_behind_the_log_gets_an_error(replay: Replay) -> None:
    append(replay, 1, 2, 3)
    found = frames(follow(replay))
    assert next(found).count(b"id: ") == 3
    append(replay, *range(4, 100))
    replay.log.trim(300)
    assert list(found) == [b"error: stream_trimmed"]
    assert replay.followers == ()


def test_a_follower_that_claims_too_much_waits_and_then_gets_an_error(replay: Replay) -> None:
    found = frames(follow(replay, 5))
    assert next(found) == OPENED
    append(replay, 1, 2)
    close(replay)
    assert list(found) == [b"error: " + InvalidRequest.code.encode()]


def test_silence_is_a_comment_without_a_blank_line(replay: Replay) -> None:
    follower = follow(replay, keepalive=10)
    found = frames(follower)
    assert next(found) == OPENED
    follower.look(time.monotonic() + 9)
    follower.look(time.monotonic() + 11)
    assert next(found) == KEEP_ALIVE
    assert KEEP_ALIVE.count(b"\n") == 1
    close(replay)
    assert list(found) == []


def test_a_hang_up_ends_the_follower_and_the_stream_is_alone(replay: Replay) -> None:
    client, server = socket.socketpair()
    follower = follow(replay, client=server)
    assert alone(replay) is None
    found = frames(follower)
    assert next(found) == OPENED
    client.close()
    follower.look(time.monotonic())
    assert list(found) == []
    assert alone(replay) is not None
    with pytest.raises(ClientGone):
        follower.wait_until_ended()
    server.close()


def test_a_follower_waits_for_the_status_line_or_raises_the_refusal(replay: Replay) -> None:
    refusal = UpstreamError("No.")
    follower = follow(replay)
    thread = threading.Timer(0.01, lambda: close(replay, refusal))
    thread.start()
    with pytest.raises(UpstreamError) as caught:
        follower.wait_until_begun()
    assert caught.value is refusal
    thread.join(HANG_S)


def test_the_status_line_goes_out_on_release(replay: Replay) -> None:
    follower = follow(replay)
    thread = threading.Timer(0.01, replay.release)
    thread.start()
    follower.wait_until_begun()
    assert replay.released
    thread.join(HANG_S)


def test_the_last_frames_of_a_refused_call_do_not_send_the_status_line(replay: Replay) -> None:
    follower = follow(replay)
    append(replay, 1)
    thread = threading.Timer(0.01, lambda: close(replay, UpstreamError("No.")))
    thread.start()
    with pytest.raises(UpstreamError):
        follower.wait_until_begun()
    thread.join(HANG_S)


def test_a_stream_takes_a_bounded_number_of_followers(replay: Replay) -> None:
    first, *_ = [follow(replay) for _ in range(MOST_FOLLOWERS)]
    with pytest.raises(RateLimited):
        follow(replay)
    first.close()
    follow(replay)


def test_the_result_shares_the_text_of_the_log(replay: Replay) -> None:
    kind = replay.log.add_template((b'data: "', b'"\n\n'))
    assert kind is not None
    for text in (b"Hel", b"lo"):
        replay.log.append(kind, text)
    ending = Ending(ABOUT, (b'{"data":"', b'","again":"', b'"}'), frozenset((kind,)))
    replay.close(ending)
    assert replay.result(ending) == b'{"data":"Hello","again":"Hello"}'
