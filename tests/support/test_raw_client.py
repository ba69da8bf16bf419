"""Tests of the raw client."""

from __future__ import annotations

import os
import resource
import socket
from contextlib import ExitStack

import pytest

from tests.support.pace import HANG_S
from tests.support.raw_client import RawClient


def test_readable_works_with_a_descriptor_above_1023() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("this machine allows fewer than 1,200 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    with ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as listener:
        while (number := os.open(os.devnull, os.O_RDONLY)) < 1030:
            stack.callback(os.close, number)
        stack.callback(os.close, number)
        client = stack.enter_context(RawClient(listener.getsockname()[1]))
        assert client.sock.fileno() > 1023
        peer = stack.enter_context(listener.accept()[0])
        assert not client.readable(0)
        peer.sendall(b"x")
        assert client.readable(HANG_S)
