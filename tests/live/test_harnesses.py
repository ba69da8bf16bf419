"""Tests of evaluation harnesses and writers with a real server: each test sends what the client
sends, and reads as it reads.

- vLLM's answers are fixtures: tests/fixtures/vllm/.

Sources: lm-evaluation-harness 0.4.13 (models/openai_completions.py, utils.py), HELM 0.5.16
(clients/openai_client.py, vllm_client.py), guidellm 0.8.1 (backends/openai), SillyTavern
(endpoints/backends/text-completions.js, constants.js), all read 2026-11.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import indoxhub  # type: ignore[import-untyped]
import pytest
import requests
from openai import OpenAI

from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S
from tests.support.paths import TESTS
from tests.support.servers import UNTROUBLED, Server

VLLM = TESTS / "fixtures" / "vllm"
SIX_STOPS = ["\n\n", "Question:", "Q:", "</s>", "###", "jumps"]
COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def module_server(fake_process: FakeProvider) -> Iterator[Server]:
    rows = f"""
[providers.vllm]
base_url = "{fake_process.base_url}"
[aliases]
"openai/gpt-4o-mini" = "local/pydoc"
"""
    env = UNTROUBLED | {"SLUICE_TOKENIZE_MODEL": "vllm/m"}
    with Server(rows, env=env) as server:
        yield server


class Client:
    """A client that authenticates with a bearer token, as all of these do."""

    def __init__(self, server: Server, fake: FakeProvider) -> None:
        self.server, self.fake = server, fake
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Bearer {server.key}"

    def answers(self, name: str, path: str = COMPLETIONS) -> None:
        """Let the host answer the next request to a path with a fixture."""
        self.fake.script(fp.answer((VLLM / f"{name}.json").read_bytes()), path)

    def get(self, path: str) -> Any:
        found = self.session.get(self.server.url + path, timeout=HANG_S)
        found.raise_for_status()
        return found.json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        found = self.session.post(self.server.url + path, json=body, timeout=HANG_S)
        assert found.status_code == 200, found.text
        return found.json()

    def lines(self, body: dict[str, Any]) -> list[str]:
        url = self.server.url + COMPLETIONS
        with self.session.post(url, json=body, stream=True, timeout=HANG_S) as found:
            found.raise_for_status()
            return [line.decode() for line in found.iter_lines()]

    @property
    def sent(self) -> dict[str, Any]:
        """The body of the host's last request."""
        found: dict[str, Any] = json.loads(self.fake.requests[-1].body)
        return found


@pytest.fixture
def client(module_server: Server, fake: FakeProvider) -> Iterator[Client]:
    made = Client(module_server, fake)
    with made.session:
        yield made


# lm-evaluation-harness


def test_lm_eval_finds_the_remote_tokenizer_and_uses_it(client: Client) -> None:
    client.answers("tokenizer_info", "/tokenizer_info")
    assert client.get("/tokenizer_info").get("eos_token") == "<|end_of_text|>"
    client.answers("tokenize", "/tokenize")
    sent = {"prompt": "The quick brown", "add_special_tokens": False}
    assert client.post("/tokenize", sent).get("tokens") == [791, 4062, 14198]
    assert client.sent == sent | {"model": "m"}
    client.answers("detokenize", "/detokenize")
    found = client.post("/detokenize", {"tokens": [791, 4062, 14198]}).get("prompt")
    assert found == "The quick brown"


SCORED = {"model": "vllm/m", "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234}
IDS = [[791, 4062, 14198], [32, 35835, 304]]
TEXTS = ["The quick brown", "A stitch in"]


@pytest.mark.parametrize("prompt", [IDS, TEXTS], ids=["tokenized", "texts"])
def test_lm_eval_scores_a_batch_of_continuations(client: Client, prompt: Any) -> None:
    client.answers("echo_logprobs")
    found = client.post(COMPLETIONS, SCORED | {"prompt": prompt, "echo": True})
    assert client.sent == SCORED | {"model": "m", "prompt": prompt, "echo": True}
    scores = [scored(choice, context=1) for choice in by_index(found)]
    assert scores == [(-5.0, False), (-6.75, False)]


@pytest.mark.parametrize("prompt", [[IDS[0]], TEXTS[0]], ids=["tokenized", "text"])
def test_lm_eval_scores_a_rolling_window(client: Client, prompt: Any) -> None:
    client.answers("echo_logprobs")
    found = client.post(COMPLETIONS, SCORED | {"prompt": prompt, "echo": True})
    assert scored(by_index(found)[0], context=2) == (-0.75, True)


def by_index(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(answer["choices"], key=itemgetter("index"))


def scored(choice: dict[str, Any], *, context: int) -> tuple[float, bool]:
    """Return the log probability of a continuation, and whether its tokens are the likeliest."""
    values = choice["logprobs"]["token_logprobs"][context:-1]
    best = [max(top.values()) for top in choice["logprobs"]["top_logprobs"][context:-1]]
    return sum(values), values == best


@pytest.mark.parametrize("prompt", [[IDS[0]], TEXTS[0]], ids=["tokenized", "text"])
def test_lm_eval_generates_until_one_of_six_stops(client: Client, prompt: Any) -> None:
    client.answers("generated")
    body = {"prompt": prompt, "model": "vllm/m", "max_tokens": 20, "temperature": 0, "seed": 1234}
    found = client.post(COMPLETIONS, body | {"stop": SIX_STOPS})
    assert [choice["text"] for choice in by_index(found)] == [" fox "]
    assert client.sent["stop"] == SIX_STOPS[:4], "vLLM takes four"


# HELM


def test_helm_scores_a_prompt_with_max_tokens_0(client: Client) -> None:
    client.answers("echo_scored")
    body: dict[str, Any] = {
        "model": "vllm/m", "prompt": TEXTS[0], "temperature": 0, "n": 1, "max_tokens": 0,
        "best_of": 1, "logprobs": 1, "stop": None, "top_p": 1, "presence_penalty": 0,
        "frequency_penalty": 0, "echo": True,
    }  # fmt: skip
    url = f"{client.server.url}/v1"
    with OpenAI(base_url=url, api_key=client.server.key, max_retries=0) as sdk:
        found = sdk.completions.create(**body).model_dump(mode="json")
    [choice] = found["choices"]
    logprobs = choice["logprobs"]
    tokens = list(zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True))
    assert tokens == [("The", None), (" quick", -4.25), (" brown", -0.75)]
    assert (choice["text"], choice["finish_reason"]) == (TEXTS[0], "length")
    assert (client.sent["max_tokens"], client.sent["echo"]) == (0, True)
    assert found["usage"]["completion_tokens"] == 0


# guidellm


def test_guidellm_checks_the_server_and_reads_usage_on_each_chunk(client: Client) -> None:
    assert client.session.get(f"{client.server.url}/health").ok
    assert "local/pydoc" in [model["id"] for model in client.get("/v1/models")["data"]]
    raw = (VLLM / "continuous_usage.sse").read_bytes()
    head = fp.head(200, {"Content-Type": "text/event-stream", "Content-Length": str(len(raw))})
    client.fake.script([head, fp.send(raw)])
    options = {"include_usage": True, "continuous_usage_stats": True}
    lines = client.lines(
        {"model": "vllm/m", "stream": True, "stream_options": options, "max_tokens": 5,
         "stop": None, "ignore_eos": True, "prompt": TEXTS[0]}
    )  # fmt: skip
    data = [line.removeprefix("data:").strip() for line in lines if line.startswith("data:")]
    assert data.pop() == "[DONE]"
    chunks = [json.loads(text) for text in data]
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 4, 5, 5, 5]
    texts = [chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"]]
    assert "".join(texts) == " fox jumps over it"
    assert client.sent["ignore_eos"] is True
    assert client.sent["max_tokens"] == 5


# The official client


def test_the_official_clients_default_model_is_served_by_an_alias(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    server = client.server
    hub = indoxhub.Client(api_key=server.key, base_url=server.url, timeout=10)
    try:
        found = hub.completion("The list type", max_tokens=5)
        stream = hub.completion("The list type", max_tokens=5, stream=True)
        chunks = [chunk.get("data", "") for chunk in stream]
    finally:
        hub.close()
    assert (found["provider"], found["model"]) == ("local", "pydoc")
    assert found["data"]
    assert "".join(filter(None, chunks))
    assert "hides" not in server.output()


# SillyTavern

GENERIC = {
    "model": "vllm/m", "prompt": TEXTS[0], "max_tokens": 40, "temperature": 1.1, "top_p": 0.9,
    "frequency_penalty": 0, "presence_penalty": 0, "seed": 7, "stream": True,
    "stop": ["\nUser:", "\n***", "</s>", "User:"], "logit_bias": {},
}  # fmt: skip
SAMPLERS = {
    "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1, "length_penalty": 1,
    "early_stopping": False, "stop_token_ids": [], "ignore_eos": False, "min_tokens": 0,
    "skip_special_tokens": True, "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False, "typical_p": 1, "tfs": 1, "mirostat_mode": 0,
    "mirostat_tau": 5, "dynamic_temperature": False, "smoothing_factor": 0,
    "xtc_probability": 0, "dry_sequence_breakers": "[]", "sampler_order": [6, 0, 1],
    "truncation_length": 8192, "max_new_tokens": 40, "add_bos_token": True,
    "custom_token_bans": "", "api_type": "generic", "api_server": "http://127.0.0.1/v1",
}  # fmt: skip


@pytest.mark.parametrize("samplers", [{}, SAMPLERS], ids=["generic", "samplers"])
def test_sillytavern_gets_a_stream_with_its_samplers_passed_on(
    client: Client, samplers: dict[str, Any]
) -> None:
    assert client.get("/v1/models")["data"][0]["id"]
    client.fake.script(fp.sse(fp.chunks([" fox", " jumps"])))
    lines = client.lines(GENERIC | samplers)
    data = [line[6:] for line in lines if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    found = [json.loads(text)["choices"][0]["text"] for text in data]
    assert "".join(found) == " fox jumps"
    kept = {name: value for name, value in samplers.items() if name != "max_new_tokens"}
    assert client.sent | kept == client.sent
    counts = {client.sent.get(name) for name in ("max_tokens", "max_new_tokens")} - {None}
    assert counts == {40}


def test_sillytavern_counts_tokens_with_the_hosts_tokenizer(client: Client) -> None:
    client.answers("tokenize", "/tokenize")
    found = client.post("/tokenize", {"prompt": TEXTS[0], "model": "vllm/m"})
    assert (found["count"], found["tokens"]) == (3, [791, 4062, 14198])
