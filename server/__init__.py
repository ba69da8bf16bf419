"""How gunicorn serves Sluice: the worker, the reading of requests, sockets and read deadlines.

- The gunicorn master loads this package, so no module but read_deadline, which the app loads, may
  import what gevent patches later (ssl, queue, requests, redis).
"""
