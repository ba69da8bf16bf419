"""abort.py: an exchange that is ended by another thread, or because its host is silent."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from providers.transport import abort
from providers.transport.abort import READ_SIZE, Aborted, AbortSwitch
from tests.providers.transport.conftest import Peers
from tests.support.pace import HANG_S


@pytest.mark.parametrize(("connecting", "times"), [(True, 3), (False, 1)])
def test_an_abort_waits_for_a_connect_that_is_about_to_begin(
    peers: Peers, monkeypatch: pytest.MonkeyPatch, connecting: bool, times: int
) -> None:
    """There, until it does, the socket can't be shut down."""
    lever, tries = AbortSwitch(), [True, False, False]
    monkeypatch.setattr(abort, "_shut", lambda _: tries.pop())
    lever.note(peers.new(), connecting=connecting)
    lever.throw()
    assert len(tries) == 3 - times
    lever.forget()


def test_abort_leaves_a_forgotten_socket_open_and_rejects_the_next_socket(peers: Peers) -> None:
    ours = peers.new()
    lever = AbortSwitch()
    lever.note(ours)
    lever.forget()
    lever.throw()
    peers.theirs[ours].send(b"x")
    assert ours.recv(1) == b"x"
    with pytest.raises(Aborted):
        lever.note(ours)


def test_forget_waits_until_a_running_abort_has_finished(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forgetting waits until the abort is through: it never strikes the next exchange."""
    ours, lever = peers.new(), AbortSwitch()
    lever.note(ours)
    within, order = threading.Event(), []

    def slow(sock: socket.socket) -> bool:
        within.set()
        time.sleep(0.05)
        order.append("shut")
        return True

    monkeypatch.setattr(abort, "_shut", slow)
    thread = threading.Thread(target=lever.throw)
    thread.start()
    assert within.wait(5)
    lever.forget()
    order.append("forgotten")
    thread.join(HANG_S)
    assert order == ["shut", "forgotten"]


def test_receive_times_out_when_the_host_falls_silent(peers: Peers) -> None:
    ours, lever = peers.new(), AbortSwitch()
    lever.silence = 0.1
    lever.note(ours)
    with pytest.raises(TimeoutError):
        lever.receive(ours)
    with pytest.raises(TimeoutError):
        lever.receive(ours)


def test_send_times_out_when_the_host_reads_nothing(peers: Peers) -> None:
    ours, lever = peers.new(), AbortSwitch()
    lever.silence = 0.1
    lever.note(ours)
    with pytest.raises(TimeoutError):
        lever.send(ours, bytes(50_000_000))


def test_socket_error_after_the_idle_timeout_is_raised_as_a_timeout(peers: Peers) -> None:
    """Under gevent the shutdown raises where the reader waits."""

    class Broken:
        def recv(self, _size: int) -> bytes:
            lever.look(time.monotonic() + 1)
            raise OSError("closed in another greenlet")

        send = recv

    lever, broken = AbortSwitch(), Broken()
    sock: Any = broken
    lever.silence = 0.1
    lever.note(peers.new())
    for fail in (lever.receive, lambda sock: lever.send(sock, b"x")):
        with pytest.raises(TimeoutError):
            fail(sock)
    lever.forget()


def test_idle_timeout_does_not_run_between_receives(peers: Peers) -> None:
    """A reader may be held up by a slow client for longer than its host may be silent."""
    ours, lever = peers.new(), AbortSwitch()
    lever.silence = 0.1
    lever.note(ours)
    peers.theirs[ours].send(b"x")
    assert lever.receive(ours) == b"x"
    lever.look(time.monotonic() + 1000)
    peers.theirs[ours].send(b"y")
    assert lever.receive(ours) == b"y"
    lever.forget()


def test_forgotten_socket_is_not_shut_down_by_the_idle_timeout(peers: Peers) -> None:
    ours, lever = peers.new(), AbortSwitch()
    lever.silence = 0.1
    lever.note(ours)
    lever.forget()
    state: Any = lever
    state._silent_since = 0.0
    lever.look(time.monotonic())
    peers.theirs[ours].send(b"x")
    assert ours.recv(1) == b"x"


def test_idle_timeout_watches_a_switch_only_between_connect_and_forget(peers: Peers) -> None:
    lever = AbortSwitch()
    lever.note(peers.new(), connecting=True)
    assert lever not in abort._silences._switches, "its connect has a limit of its own"
    lever.note(peers.new())
    assert lever in abort._silences._switches
    lever.forget()
    assert lever not in abort._silences._switches


def test_receive_returns_at_most_the_read_size(peers: Peers) -> None:
    ours, lever = peers.new(), AbortSwitch()
    peers.theirs[ours].sendall(bytes(30_000))
    assert [len(lever.receive(ours)) for _ in range(2)] == [READ_SIZE, 30_000 - READ_SIZE]


def test_send_delivers_all_bytes_over_partial_writes(peers: Peers) -> None:
    ours, lever = peers.new(), AbortSwitch()
    sent, came = b"0123456789" * 1_000_000, bytearray()

    def receive() -> None:
        while len(came) < len(sent) and (data := peers.theirs[ours].recv(1 << 20)):
            came.extend(data)

    reader = threading.Thread(target=receive)
    reader.start()
    lever.send(ours, sent)
    reader.join(HANG_S)
    assert bytes(came) == sent
