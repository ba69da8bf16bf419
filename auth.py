"""Bearer authentication: the key that the current request carries, and its check.

- A missing, an unknown, a disabled and an expired key get identical 401 messages.
- No other module below the endpoints imports Flask.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn, TypeVar, cast

from flask import Flask, Request
from flask.globals import _cv_app, _cv_request
from flask_httpauth import HTTPTokenAuth
from werkzeug.datastructures import Authorization

from errors import AdminRequired, Unauthorized
from keys.key import Key
from keys.store import KeyStore

F = TypeVar("F", bound=Callable[..., Any])


def current_app() -> Flask:
    """Return the app that handles the current request.

    Flask's own proxy makes several function calls per use, and each request uses the app often;
    see docs/decisions/0011-the-cost-of-a-call.md.
    """
    return _cv_app.get().app


def current_request() -> Request:
    return _cv_request.get().request


class BearerAuth(HTTPTokenAuth):  # type: ignore[misc]
    """An HTTPTokenAuth that reads the token with `presented_key`.

    The library uses werkzeug's request.authorization, which raises on a non-ASCII Basic header and
    parses a token that contains `=` as parameters.
    """

    def get_auth(self) -> Authorization | None:
        secret = presented_key()
        return None if secret is None else Authorization("bearer", token=secret)

    def ensure_sync(self, f: F) -> F:
        """Return the function. The library would check each time that it isn't a coroutine."""
        return f

    def login_required(self, view: F) -> F:
        """Return the view, guarded: every method except OPTIONS needs a valid key."""
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
    """Return the text of the current request's key, valid or not; None if there is none.

    X-API-Key is read only if there is no Authorization header.
    """
    header = current_request().environ.get("HTTP_AUTHORIZATION", "").strip()
    if not header:
        return x_api_key()
    scheme, _, token = header.partition(" ")
    return (token.strip() or None) if scheme.lower() == "bearer" else None


def x_api_key() -> str | None:
    """Return the X-API-Key header of the current request; None if it is missing or empty."""
    return current_request().environ.get("HTTP_X_API_KEY", "").strip() or None


def key_of(secret: str | None) -> Key:
    """Return the key with this text, for a view without `login_required`. Raises Unauthorized."""
    key = None if secret is None else verify(secret)
    if key is None:
        raise Unauthorized(key_sent=secret is not None)
    return key


def caller() -> Key | None:
    """Return the caller's key; None unless `login_required` has accepted one for this request."""
    key = _cv_app.get().g.get("flask_httpauth_user")
    return key if isinstance(key, Key) else None


def current_key() -> Key:
    """Return the caller's key, in a view with `login_required`. Raises Unauthorized elsewhere."""
    key = caller()
    if key is None:
        raise Unauthorized(key_sent=False)
    return key


def current_admin() -> Key:
    """Return the caller's key, which is an admin key. Raises Unauthorized and AdminRequired."""
    key = current_key()
    if not key.admin:
        raise AdminRequired
    return key


def admin_required(view: F) -> F:
    """Return a guarded view: every method except OPTIONS needs a valid admin key."""

    @wraps(view)
    def guarded(*arguments: Any, **named: Any) -> Any:
        if current_request().method != "OPTIONS":
            current_admin()
        return view(*arguments, **named)

    return auth.login_required(cast(F, guarded))
