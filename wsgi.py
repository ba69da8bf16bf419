"""The WSGI entry point: `gunicorn wsgi:app`, `flask --app wsgi run`, `python wsgi.py`."""

from __future__ import annotations

import sys

from app import create_app
from config import DEFAULT_PORT, ConfigError

CANNOT_LOAD = 4  # on this exit status gunicorn's master exits instead of restarting its workers

try:
    app = create_app()
except ConfigError as error:
    print(f"sluice: {error}", file=sys.stderr)
    sys.exit(CANNOT_LOAD)

if __name__ == "__main__":
    # Imported here because the other servers don't need it.
    from cli.development import serve

    services = app.extensions["sluice"]
    for start, needed in services.starts():
        try:
            start()
        except ConfigError as error:
            if needed:
                sys.exit(f"sluice: {error}")
    port = services.settings.port or DEFAULT_PORT
    serve(app, services.settings.host or "127.0.0.1", port)
