"""Bearer authentication: who sent the current request.

- A request without a key, and with an unknown, a disabled or an expired key, are refused in the
  same words.
- This is the one module below the endpoints that imports Flask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from flask import Flask, Request
from flask.globals import _cv_app, _cv_request
from flask_httpauth import HTTPTokenAuth
from werkzeug.datastructures import Authorization

from errors import Unauthorized
from keys.key import Key
from keys.store import KeyStore

F = TypeVar("F", bound=Callable[..., Any])


def current_app() -> Flask:
    """The app that answers now. Flask's own proxy calls four functions at each use of it, and a
    call uses it some thirty times."""
    return _cv_app.get().app


def current_request() -> Request:
    """The request that is being answered."""
    return _cv_request.get().request


class BearerAuth(HTTPTokenAuth):  # type: ignore[misc]
    """HTTPTokenAuth that takes its token from where `presented_key` finds it.

    The library's own reading (werkzeug's request.authorization) raises on a non-ASCII Basic
    header and takes a token with a `=` inside for parameters.
    """

    def get_auth(self) -> Authorization | None:
        secret = presented_key()
        return None if secret is None else Authorization("bearer", token=secret)

    def login_required(self, view: F) -> F:
        """The view, for callers with a good key only. OPTIONS needs none."""
        guarded: F = super().login_required(view)
        return guarded


auth = BearerAuth(scheme="Bearer", realm="sluice")


def verify(secret: str) -> Key | None:
    store: KeyStore = current_app().extensions["sluice"].keys
    return store.find(secret)


def refuse(_status: int) -> NoReturn:
    raise Unauthorized(key_sent=presented_key() is not None)


auth.verify_token(verify)
auth.error_handler(refuse)


def presented_key() -> str | None:
    """The text of the key in this request, good or not: the Authorization header's, if it is a
    bearer's; X-API-Key's only when there is no Authorization header."""
    header = current_request().environ.get("HTTP_AUTHORIZATION", "").strip()
    if not header:
        return x_api_key()
    scheme, _, token = header.partition(" ")
    return (token.strip() or None) if scheme.lower() == "bearer" else None


def x_api_key() -> str | None:
    """The text in this request's X-API-Key header."""
    return current_request().environ.get("HTTP_X_API_KEY", "").strip() or None


def key_of(secret: str | None) -> Key:
    """The key with this text, for a view that reads its header itself. Raises Unauthorized."""
    key = None if secret is None else verify(secret)
    if key is None:
        raise Unauthorized(key_sent=secret is not None)
    return key


def caller() -> Key | None:
    """The caller's key, once a view under login_required was reached with a good one."""
    key = _cv_app.get().g.get("flask_httpauth_user")
    return key if isinstance(key, Key) else None


def current_key() -> Key:
    """The caller's key, in a view under login_required. Raises Unauthorized where there is none."""
    key = caller()
    if key is None:
        raise Unauthorized(key_sent=False)
    return key
