"""gunicorn's side of Sluice: the worker, requests and responses, sockets, and read deadlines.

- The gunicorn master loads this package, so no module but read_deadline, which the app loads, may
  import a module that gevent patches later (ssl, queue, requests, redis).
- docs/decisions/0012-the-worker.md lists each override of gunicorn's code with its gain and the
  private names that it uses.
"""
