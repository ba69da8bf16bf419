"""Tests of the recording of Redis commands, and of the ids that simulated calls get."""

from __future__ import annotations

from bench.recording import STREAM_ID, each_second, of_call, packed, parsed, renamed

PROCESS, HOLD = b"0123456789abcdef", b"00112233445566778899aabbccddeeff"
CLAIM = (b"EVALSHA", b"a" * 40, b"1", b"sluice:calls:key_0-23_5678901", PROCESS, STREAM_ID)


def test_a_line_of_monitor_is_parsed_with_its_escapes() -> None:
    line = b'+1700000000.250000 [0 127.0.0.1:5000] "SET" "a \\"b\\"" "\\x00\\n\\\\"'
    assert parsed(line) == (1700000000.25, False, (b"SET", b'a "b"', b"\x00\n\\"))
    assert parsed(b'+1.5 [0 lua] "TIME"').by_script


def test_a_call_is_known_by_the_id_of_its_key_or_by_a_counter() -> None:
    assert of_call(CLAIM)
    assert of_call((b"EVALSHA", b"a" * 40, b"1", b"LIMITS:{LIMITER/group:team/9/1/hour}"))
    assert not of_call((b"EVALSHA", b"a" * 40, b"1", b"sluice:fleet", PROCESS))


def test_a_simulated_call_has_ids_of_its_own() -> None:
    new = {PROCESS: b"f" * 16, HOLD: b"e" * 32}
    words = (*CLAIM, b"LIMITS:hold/" + HOLD)
    found = renamed(words, new.__getitem__, b"s" * 24, b"key_new567890123")
    assert found == [
        *(b"EVALSHA", b"a" * 40, b"1", b"sluice:calls:key_new567890123", b"f" * 16, b"s" * 24),
        b"LIMITS:hold/" + b"e" * 32,
    ]


def test_the_heartbeat_is_what_comes_about_once_a_second() -> None:
    beat = (b"EVALSHA", b"a" * 40, b"1", b"sluice:fleet")
    rare = (b"PING",)
    assert each_second([beat] * 4 + [rare], 5) == [beat]
    assert each_second([beat] * 11, 5) == [beat] * 2


def test_a_command_is_encoded_for_redis() -> None:
    assert packed([b"SET", b"a", b""]) == b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$0\r\n\r\n"
