"""The baseline: the obvious gateway, with Flask, requests, and a thread per request."""

import json
import os
import time
import uuid

import requests
from flask import Flask, Response, jsonify, request

app = Flask(__name__)
session = requests.Session()
session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=1000))
UPSTREAM = f"http://127.0.0.1:{os.environ['UPSTREAM_PORT']}"
HEADERS = {"Authorization": "Bearer x"}


@app.post("/v1/chat/completions")
@app.post("/v1/completions")
def completions():
    url = UPSTREAM + request.path
    body, began = request.get_json(), time.perf_counter()
    if not body.get("stream"):
        answer = session.post(url, json=body, headers=HEADERS, timeout=60).json()
        took = (time.perf_counter() - began) * 1e3
        return jsonify({**answer, "id": str(uuid.uuid4()), "duration_ms": took})
    upstream = session.post(url, json=body, headers=HEADERS, stream=True, timeout=60)

    def events():
        with upstream:
            for line in upstream.iter_lines():
                if line.startswith(b"data: ") and line != b"data: [DONE]":
                    chunk = {**json.loads(line[6:]), "model": "sim/sim-1"}
                    yield "data: " + json.dumps(chunk) + "\n\n"
            yield "data: [DONE]\n\n"

    return Response(events(), mimetype="text/event-stream")
