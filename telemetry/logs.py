"""Log lines: JSON for machines, words for a terminal.

- This module imports only the standard library and keys.redaction, because the gunicorn master
  loads it too.
- The fields of a line beside its message come as `extra` and are named in FIELDS, so no header,
  body or credential gets in by accident.
- Text that looks like a key is masked, because messages of other libraries pass through here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Final, TextIO

from keys.redaction import mask, may_hold_key

FIELDS = (
    "request_id", "stream_id", "key_id", "method", "path", "status", "code", "provider", "replica",
    "model", "input_tokens", "output_tokens", "usage_source", "cost_usd", "duration_ms",
    "first_event_ms", "attempts", "end_reason", "upstream_status", "upstream_code", "failures",
)  # fmt: skip
UPSTREAM = ("upstream_status", "upstream_code")
SHOWN = (
    "method",
    "path",
    "status",
    "code",
    "provider",
    "replica",
    "model",
    "duration_ms",
    "end_reason",
    "failures",
    "request_id",
)


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of a record beside its message."""
    values = record.__dict__
    return {name: values[name] for name in FIELDS if name in values}


encode = json.JSONEncoder(default=str).encode


@lru_cache(maxsize=2)
def second(moment: int) -> str:
    """Return a moment in seconds since 1970 as text without its fraction; many lines share it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))


def head(moment: float, level: str, logger: str, message: str) -> dict[str, Any]:
    """Return the first fields of each JSON line. moment: seconds since 1970."""
    whole = int(moment)
    return {
        "time": f"{second(whole)}.{int((moment - whole) * 1000):03d}Z",
        "level": level,
        "logger": logger,
        "message": message,
    }


COLOUR: Final = re.compile("\x1b\\[[0-9;]*m")


def uncoloured(text: str) -> str:
    """Return a message without the colours of a terminal, which werkzeug adds."""
    return COLOUR.sub("", text) if "\x1b" in text else text


class JsonFormatter(logging.Formatter):
    """A formatter of lines of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        level, message = record.levelname.lower(), uncoloured(record.getMessage())
        line = head(record.created, level, record.name, message) | fields(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # Masking comes before encoding: in JSON a mask would swallow the backslash of a quote.
        texts = "\n".join([value for value in line.values() if isinstance(value, str)])
        if may_hold_key(texts):
            line = {n: mask(v) if isinstance(v, str) else v for n, v in line.items()}
        return encode(line)


class JsonLines(logging.StreamHandler[TextIO]):
    """A handler whose lines `log_call` of call_records.py may write itself."""


class TextFormatter(logging.Formatter):
    """A formatter of lines of words, for a person at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        values = fields(record)
        words = [
            time.strftime("%H:%M:%S", time.localtime(record.created)),
            record.levelname.lower(),
            uncoloured(record.getMessage()),
            *(f"{name}={values[name]}" for name in SHOWN if values.get(name) is not None),
        ]
        if "output_tokens" in values:
            words.append(f"tokens={values.get('input_tokens', 0)}+{values['output_tokens']}")
        text = one_line(mask(" ".join(words)))
        if record.exc_info:
            text += "\n" + mask(self.formatException(record.exc_info))
        return text


def one_line(text: str) -> str:
    """Return text without the characters that would start a line or control a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class AccessFormatter(logging.Formatter):
    """The format of gunicorn's access log, whose lines quote what clients sent."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(mask(record.getMessage()))


def formatter(kind: str, handler: logging.Handler | None = None) -> logging.Formatter:
    """Return the formatter of a handler (by default one for standard error).

    Args:
        kind: json, text, or auto (text on a terminal).
    """
    terminal = not isinstance(handler, logging.FileHandler) and sys.stderr.isatty()
    return TextFormatter() if kind == "text" or (kind == "auto" and terminal) else JsonFormatter()


def format_gunicorn(kind: str) -> None:
    """Give the lines of gunicorn's logs their format, wherever gunicorn's options send them."""
    errors = logging.getLogger("gunicorn.error")
    for handler in errors.handlers:
        handler.setFormatter(formatter(kind, handler))
    for handler in logging.getLogger("gunicorn.access").handlers:
        handler.setFormatter(AccessFormatter())
    logging.getLogger().handlers = list(errors.handlers)


class HideOnce(logging.Filter):
    """A filter that drops one line of each of some messages."""

    def __init__(self, messages: Iterable[str]) -> None:
        super().__init__()
        self._left = set(messages)

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        hidden = message in self._left
        self._left.discard(message)
        return not hidden


def hide_once(messages: Iterable[str]) -> None:
    """Don't log these messages when they come for the first time: they were shown already."""
    if messages := [*messages]:
        for handler in logging.getLogger().handlers:
            handler.addFilter(HideOnce(messages))


class Collector(logging.Handler):
    """A handler that keeps the messages."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(one_line(mask(record.getMessage())))


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
    """Collect Sluice's warnings instead of logging them, although logging is disabled."""
    logger, collector = logging.getLogger("sluice"), Collector()
    before, propagates = logging.root.manager.disable, logger.propagate
    logging.disable(logging.NOTSET)
    logger.addHandler(collector)
    logger.propagate = False
    try:
        yield collector.messages
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagates
        logging.disable(before)


def log_file() -> logging.Handler | None:
    """Return the handler of gunicorn's --error-logfile, or None if there is no such file."""
    handlers = logging.getLogger("gunicorn.error").handlers
    return next((found for found in handlers if isinstance(found, logging.FileHandler)), None)


def configure(kind: str, level: str) -> None:
    """Send Sluice's lines to standard error, or to gunicorn's --error-logfile if there is one.

    Other libraries' lines are sent there too, from warnings up.
    """
    handler = log_file()
    if handler is None:
        form = formatter(kind)
        handler = JsonLines() if isinstance(form, JsonFormatter) else logging.StreamHandler()
        handler.setFormatter(form)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its warnings quote headers
    logging.getLogger("sluice").setLevel(level.upper())
