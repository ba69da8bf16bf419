"""llama.cpp's own server with a tiny model of random weights: python llama_server.py FOLDER PORT.

Its answers are words without sense, but the server's own: grammars for tools, slots, usage. It
listens on loopback until it gets SIGTERM.
"""

import sys
import threading
from pathlib import Path
from typing import Any

import gguf  # type: ignore[import-not-found]
import numpy as np  # type: ignore[import-not-found]
import xllamacpp  # type: ignore[import-not-found]

WIDTH, HIDDEN, HEADS, LAYERS, CONTEXT = 256, 1024, 4, 8, 4096
"""A model of this size writes some hundred tokens a second: slow enough to be stopped."""
WORDS = (
    *("a", "the", "one", "two", "red", "blue", "cat", "dog", "tree", "house"),
    *("runs", "sees", "and", "or", "hello", "world"),
)
TEMPLATE = """\
{%- if tools %}Call these with <tool_call>{"name": NAME, "arguments": {}}</tool_call>:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif %}
{%- for message in messages %}{{ message.role }}: {{ message.content or '' }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}}</tool_call>
{%- endfor %}
{% endfor %}
{%- if add_generation_prompt %}assistant: {% endif %}"""
"""A template from which the server learns that the model can call tools, and how it writes that."""


def vocabulary() -> tuple[list[bytes], list[float], list[int]]:
    """Return the tokens, their scores and their types: control tokens, bytes, letters, words."""
    kinds = gguf.TokenType
    found: dict[bytes, tuple[float, int]] = {
        b"<unk>": (0, kinds.UNKNOWN),
        b"<s>": (0, kinds.CONTROL),
        b"</s>": (0, kinds.CONTROL),
        b"<tool_call>": (0, kinds.USER_DEFINED),  # a logit_bias of token 3 makes it call a tool
    }
    found |= {f"<0x{byte:02X}>".encode(): (0, kinds.BYTE) for byte in range(256)}
    for letter in ["\u2581", "\n", *map(chr, range(33, 127))]:
        found.setdefault(letter.encode(), (-1000, kinds.NORMAL))
    for word in WORDS:
        for length in range(2, len(word) + 2):  # a tokenizer builds a word from its beginnings
            found.setdefault(f"\u2581{word}"[:length].encode(), (-100.0 + length, kinds.NORMAL))
    scores, types = zip(*found.values(), strict=True)
    return list(found), [float(score) for score in scores], [int(kind) for kind in types]


def write(path: Path) -> None:
    tokens, scores, types = vocabulary()
    random = np.random.default_rng(7)

    def weights(*shape: int) -> Any:
        return (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    out = gguf.GGUFWriter(str(path), "llama")
    out.add_context_length(CONTEXT)
    out.add_embedding_length(WIDTH)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(HIDDEN)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(len(tokens))
    out.add_tokenizer_model("llama")
    out.add_token_list(tokens)
    out.add_token_scores(scores)
    out.add_token_types(types)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    out.add_add_space_prefix(False)  # the grammars of tools begin with the prompt as it is
    out.add_chat_template(TEMPLATE)
    out.add_tensor("token_embd.weight", weights(len(tokens), WIDTH))
    shapes = {
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (WIDTH, WIDTH),
        "attn_v": (WIDTH, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (HIDDEN, WIDTH),
        "ffn_up": (HIDDEN, WIDTH),
        "ffn_down": (WIDTH, HIDDEN),
    }
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            out.add_tensor(f"blk.{layer}.{name}.weight", np.ones(WIDTH, np.float32))
        for name, shape in shapes.items():
            out.add_tensor(f"blk.{layer}.{name}.weight", weights(*shape))
    out.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    last = 3 * weights(len(tokens), WIDTH)
    last[:260] = 0  # neither bytes, which may be no characters, nor an early end
    out.add_tensor("output.weight", last)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def serve(path: Path, port: int) -> None:
    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.hostnames = str(path), port, ["127.0.0.1"]
    params.n_parallel, params.n_ctx, params.warmup = 2, CONTEXT, False
    params.cpuparams.n_threads = 1
    params.use_jinja = params.endpoint_slots = True
    server = xllamacpp.Server(params)
    print("ready", server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    model = Path(sys.argv[1]) / "tiny.gguf"
    write(model)
    serve(model, int(sys.argv[2]))
