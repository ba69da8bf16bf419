"""The errors of the keys and of their file."""

from __future__ import annotations


class KeyFileError(Exception):
    """The error for a failed operation on the keys. The message is one line for the operator.

    Attributes:
        field: the name of the invalid field; None if the error isn't about one.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class UnknownKey(KeyFileError):
    """The error for an id or a name that no key has."""


class NameTaken(KeyFileError):
    """The error for the name of another key."""


class CannotWriteKeys(KeyFileError):
    """The error for a key of SLUICE_KEYS, and for a key file that can't be read or written."""


class BrokenLine(Exception):
    """The error for an invalid line of the key file. The message never quotes the line.

    Attributes:
        field: the name of the line's invalid or missing field, if it is about one.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field
