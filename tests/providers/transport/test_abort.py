"""Tests of providers/transport/abort.py: aborts by another thread, and at the idle timeout."""

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
    """A socket can't be shut down before its connect has started."""
    switch, tries = AbortSwitch(), [True, False, False]
    monkeypatch.setattr(abort, "_shut", lambda _: tries.pop())
    switch.note(peers.new(), connecting=connecting)
    switch.throw()
    assert len(tries) == 3 - times
    switch.forget()


def test_abort_leaves_a_forgotten_socket_open_and_rejects_the_next_socket(peers: Peers) -> None:
    ours = peers.new()
    switch = AbortSwitch()
    switch.note(ours)
    switch.forget()
    switch.throw()
    peers.theirs[ours].send(b"x")
    assert ours.recv(1) == b"x"
    with pytest.raises(Aborted):
        switch.note(ours)


def test_forget_waits_until_a_running_abort_has_finished(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the abort could end the next exchange on the connection."""
    ours, switch = peers.new(), AbortSwitch()
    switch.note(ours)
    shutting, order = threading.Event(), []

    def slow(sock: socket.socket) -> bool:
        shutting.set()
        time.sleep(0.05)
        order.append("shut")
        return True

    monkeypatch.setattr(abort, "_shut", slow)
    thread = threading.Thread(target=switch.throw)
    thread.start()
    assert shutting.wait(5)
    switch.forget()
    order.append("forgotten")
    thread.join(HANG_S)
    assert order == ["shut", "forgotten"]


def test_receive_times_out_when_the_host_falls_silent(peers: Peers) -> None:
    ours, switch = peers.new(), AbortSwitch()
    switch.silence = 0.1
    switch.note(ours)
    with pytest.raises(TimeoutError):
        switch.receive(ours)
    with pytest.raises(TimeoutError):
        switch.receive(ours)


def test_send_times_out_when_the_host_reads_nothing(peers: Peers) -> None:
    ours, switch = peers.new(), AbortSwitch()
    switch.silence = 0.1
    switch.note(ours)
    with pytest.raises(TimeoutError):
        switch.send(ours, bytes(50_000_000))


def test_socket_error_after_the_idle_timeout_is_raised_as_a_timeout(peers: Peers) -> None:
    """Under gevent, the shutdown makes the waiting reader raise OSError."""

    class Broken:
        def recv(self, _size: int) -> bytes:
            switch.look(time.monotonic() + 1)
            raise OSError("closed in another greenlet")

        send = recv

    switch, broken = AbortSwitch(), Broken()
    sock: Any = broken
    switch.silence = 0.1
    switch.note(peers.new())
    for fail in (switch.receive, lambda sock: switch.send(sock, b"x")):
        with pytest.raises(TimeoutError):
            fail(sock)
    switch.forget()


def test_idle_timeout_does_not_run_between_receives(peers: Peers) -> None:
    """A slow client may delay the reader for longer than the idle timeout."""
    ours, switch = peers.new(), AbortSwitch()
    switch.silence = 0.1
    switch.note(ours)
    peers.theirs[ours].send(b"x")
    assert switch.receive(ours) == b"x"
    switch.look(time.monotonic() + 1000)
    peers.theirs[ours].send(b"y")
    assert switch.receive(ours) == b"y"
    switch.forget()


def test_forgotten_socket_is_not_shut_down_by_the_idle_timeout(peers: Peers) -> None:
    ours, switch = peers.new(), AbortSwitch()
    switch.silence = 0.1
    switch.note(ours)
    switch.forget()
    state: Any = switch
    state._silent_since = 0.0
    switch.look(time.monotonic())
    peers.theirs[ours].send(b"x")
    assert ours.recv(1) == b"x"


def test_idle_timeout_watches_a_switch_only_between_connect_and_forget(peers: Peers) -> None:
    switch = AbortSwitch()
    switch.note(peers.new(), connecting=True)
    assert switch not in abort._silences._switches, "the connect has its own timeout"
    switch.note(peers.new())
    assert switch in abort._silences._switches
    switch.forget()
    assert switch not in abort._silences._switches


def test_receive_returns_at_most_the_read_size(peers: Peers) -> None:
    ours, switch = peers.new(), AbortSwitch()
    peers.theirs[ours].sendall(bytes(READ_SIZE + 1_000))
    assert [len(switch.receive(ours)) for _ in range(2)] == [READ_SIZE, 1_000]


def test_send_delivers_all_bytes_over_partial_writes(peers: Peers) -> None:
    ours, switch = peers.new(), AbortSwitch()
    sent, received = b"0123456789" * 1_000_000, bytearray()

    def receive() -> None:
        while len(received) < len(sent) and (data := peers.theirs[ours].recv(1 << 20)):
            received.extend(data)

    reader = threading.Thread(target=receive)
    reader.start()
    switch.send(ours, sent)
    reader.join(HANG_S)
    assert bytes(received) == sent
