"""The built-in rows: a description of each host that Sluice knows.

- This module has only data. An OpenAI-compatible host needs only a row, here or in sluice.toml.

Rows were checked against the hosts' own references and SDKs in 2026-11; see
docs/guides/providers.md.
"""

from __future__ import annotations

from typing import Final

from providers.base import Family, Fim, Provider

BY_TEMPLATE: Final = (Fim(kind="template"),)
MODERN: Final = {"max_tokens": "max_completion_tokens"}
FOUR_STOPS: Final[dict[str, float]] = {"stop": 4}
"""Where the limits of a row have no number of stop sequences, the host states none."""
PENALTIES: Final = ("frequency_penalty", "presence_penalty")
OPENAI_LEGACY: Final = ("gpt-3.5-turbo-instruct*", "davinci-002", "babbage-002", "ft:*-002:*")
OPENAI_FAMILIES: Final = (
    Family(models=("gpt-3.5-turbo-instruct*",), limits={"logprobs": 5}),
    Family(
        models=("davinci-002", "babbage-002", "ft:*-002:*"),
        cannot=("suffix",),
        limits={"logprobs": 5},
    ),
    Family(  # reasoning models reject stop sequences and parameters that steer the sampling
        models=("o[1-9]*", "gpt-5*", "gpt-6*"),
        unless=("gpt-5-chat*",),
        cannot=("temperature", "top_p", "stop", "logprobs", "logit_bias", *PENALTIES),
    ),
)
CLAUDE_UNSTEERED: Final = (  # these models reject parameters that steer the sampling
    *("claude-opus-4-[78]*", "claude-opus-[5-9]*", "claude-sonnet-[5-9]*"),
    *("claude-haiku-[5-9]*", "claude-fable-*", "claude-mythos-*"),
)
CLAUDE_EITHER: Final = ("claude-*-4-[156]", "claude-*-4-[156]-*")

BUILT_IN: Final = (
    Provider(
        name="local", dialect="local", models=("pydoc", "slow"), free=True, disconnect="cancel"
    ),
    Provider(
        name="openai",
        base_url="https://api.openai.com/v1",
        api_key_env="OPENAI_API_KEY",
        completions=OPENAI_LEGACY,
        chat_names=MODERN,
        limits=FOUR_STOPS,
        families=OPENAI_FAMILIES,
        models=("gpt-4.1-mini", "gpt-5.4-mini"),
    ),
    Provider(
        name="anthropic",
        dialect="anthropic",
        base_url="https://api.anthropic.com/v1",
        api_key_env="ANTHROPIC_API_KEY",
        chat_url="chat/completions",
        cannot=("blank_stop",),
        limits={"temperature": 1},
        families=(
            Family(models=CLAUDE_UNSTEERED, cannot=("temperature", "top_p")),
            Family(models=CLAUDE_EITHER, exclusive=("temperature", "top_p")),
        ),
        models=("claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5"),
    ),
    Provider(
        name="cohere",
        dialect="cohere",
        base_url="https://api.cohere.com/v2",
        api_key_env="COHERE_API_KEY",
        chat_url="../compatibility/v1/chat/completions",
        limits={
            "temperature": 1,
            "top_p": 0.99,
            "stop": 5,
            "frequency_penalty": 1,
            "presence_penalty": 1,
        },
        models=("command-a-plus-05-2026", "command-a-03-2025"),
    ),
    Provider(  # the Gemini API
        name="google",
        dialect="google",
        base_url="https://generativelanguage.googleapis.com/v1beta",
        api_key_env="GEMINI_API_KEY",
        key_header="x-goog-api-key",
        chat_url="openai/chat/completions",
        chat_key_header="Authorization",
        limits={"n": 8, "stop": 5, "logprobs": 20},
        families=(
            Family(models=("*",), unless=("*gemini-2.0-*",), cannot=PENALTIES),
            Family(models=("*gemini-3*",), cannot=("logprobs",)),
        ),
        models=("gemini-2.5-flash",),
    ),
    Provider(  # for AWS credentials instead of an API key, set sign = "sigv4" in sluice.toml
        name="bedrock",
        dialect="bedrock",
        base_url="https://bedrock-runtime.{AWS_REGION}.amazonaws.com",
        api_key_env="AWS_BEARER_TOKEN_BEDROCK",
        chat_url="openai/v1/chat/completions",
        chat_models=("openai.*", "*.openai.*"),
        limits={"temperature": 1},
        families=(
            Family(models=("*anthropic.*",), cannot=("blank_stop",)),
            Family(
                models=tuple(f"*anthropic.{glob}" for glob in CLAUDE_UNSTEERED),
                cannot=("temperature", "top_p"),
            ),
            Family(
                models=tuple(f"*anthropic.{glob}" for glob in CLAUDE_EITHER),
                exclusive=("temperature", "top_p"),
            ),
        ),
        price_id="aws",
        models=("anthropic.claude-haiku-4-5-20251001-v1:0",),
    ),
    Provider(  # operators name deployments freely: list legacy ones in `completions`
        name="azure",
        base_url="{AZURE_OPENAI_ENDPOINT}/openai/v1",
        api_key_env="AZURE_OPENAI_API_KEY",
        key_header="api-key",
        completions=("gpt-35-turbo-instruct*", *OPENAI_LEGACY),
        chat_names=MODERN,
        limits=FOUR_STOPS,
        families=OPENAI_FAMILIES,
        discover=False,  # its list has the models that could be deployed, not the deployments
    ),
    Provider(
        name="deepseek",
        base_url="https://api.deepseek.com",
        api_key_env="DEEPSEEK_API_KEY",
        cannot=("n", "seed", "logit_bias", "user"),
        limits={"stop": 16},
        fim=(
            Fim(
                path="/beta/completions",
                cannot=(
                    *("n", "best_of", "seed", "logit_bias", "user"),
                    *("prompt_list", "token_ids"),
                ),
            ),
        ),
        models=("deepseek-flash",),
    ),
    Provider(  # xAI has retired the models for which its legacy endpoint is documented
        name="xai",
        base_url="https://api.x.ai/v1",
        api_key_env="XAI_API_KEY",
        cannot=("logit_bias",),
        limits={"logprobs": 8, "stop": 4},
        chat_names=MODERN,
        families=(
            Family(models=("grok-4*",), unless=("*non-reasoning*",), cannot=("stop", *PENALTIES)),
        ),
        price_id="x-ai",
        models=("grok-4.3",),
    ),
    Provider(
        name="mistral",
        base_url="https://api.mistral.ai/v1",
        api_key_env="MISTRAL_API_KEY",
        cannot=("logprobs", "logit_bias", "user"),
        limits={"temperature": 1.5},
        chat_names={"seed": "random_seed"},
        stream_options={},
        fim=(
            Fim(
                path="/fim/completions",
                models=("codestral*",),
                cannot=(
                    *("n", "best_of", "logprobs", "echo", "logit_bias", "user", *PENALTIES),
                    *("prompt_list", "token_ids"),
                ),
                names={"seed": "random_seed"},
                only=("min_tokens", "metadata", "prompt_cache_key"),  # others are a 422
            ),
        ),
        models=(
            "mistral-small-latest",
            "codestral-latest",
        ),
    ),
    Provider(  # in China: base_url = "https://dashscope.aliyuncs.com/compatible-mode/v1"
        name="qwen",
        base_url="https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
        api_key_env="DASHSCOPE_API_KEY",
        cannot=("frequency_penalty", "logit_bias", "user"),
        models=("qwen-plus", "qwen3-max"),
    ),
    Provider(
        name="huggingface",
        base_url="https://router.huggingface.co/v1",
        api_key_env="HF_TOKEN",
        cannot=("n", "logit_bias", "user"),
        limits={"logprobs": 5, "stop": 4},
        models=("openai/gpt-oss-120b:groq",),
    ),
    Provider(
        name="groq",
        base_url="https://api.groq.com/openai/v1",
        api_key_env="GROQ_API_KEY",
        cannot=("n", "logprobs", "logit_bias", *PENALTIES),
        limits=FOUR_STOPS,
        chat_names=MODERN,
        stream_options={},
        models=("openai/gpt-oss-20b",),
    ),
    Provider(
        name="together",
        base_url="https://api.together.ai/v1",
        api_key_env="TOGETHER_API_KEY",
        completions=True,
        cannot=("best_of", "suffix", "user", "prompt_list", "token_ids"),
        stream_options={},
        models=("openai/gpt-oss-120b",),
        fim=BY_TEMPLATE,
    ),
    Provider(
        name="fireworks",
        base_url="https://api.fireworks.ai/inference/v1",
        api_key_env="FIREWORKS_API_KEY",
        completions=True,
        cannot=("best_of", "suffix"),
        limits={"logprobs": 5, "stop": 4},
        stream_options={},
        models=("accounts/fireworks/models/gpt-oss-120b",),
        fim=BY_TEMPLATE,
    ),
    Provider(  # the legacy endpoint isn't in the specification, and not every upstream serves it
        name="openrouter",
        base_url="https://openrouter.ai/api/v1",
        check="/key",  # the list of models needs no key
        api_key_env="OPENROUTER_API_KEY",
        cannot=("n",),
        limits=FOUR_STOPS,
        models=("openai/gpt-5.4-mini",),
    ),
    Provider(
        name="cerebras",
        base_url="https://api.cerebras.ai/v1",
        api_key_env="CEREBRAS_API_KEY",
        completions=True,
        cannot=("suffix", "logit_bias", *PENALTIES),
        limits={"temperature": 1.5, "stop": 4},
        chat_names=MODERN,
        models=("gpt-oss-120b",),
    ),
    Provider(
        name="nvidia",
        base_url="https://integrate.api.nvidia.com/v1",
        api_key_env="NVIDIA_API_KEY",
        models=("meta/llama-3.3-70b-instruct",),
    ),
    Provider(  # reportedly closed in 2026-09; kept for accounts that still have access
        name="perplexity",
        base_url="https://api.perplexity.ai",
        check="/router/v1/models",
        discover=False,  # that list belongs to another of its APIs
        api_key_env="PERPLEXITY_API_KEY",
        cannot=("seed", "logit_bias", "user"),
        stream_options={},
        models=("sonar-pro",),
    ),
    Provider(
        name="ollama",
        base_url="http://127.0.0.1:11434/v1",
        completions=True,
        cannot=(
            *("n", "best_of", "echo", "logprobs", "logit_bias", "user"),
            *("prompt_list", "token_ids"),
        ),
    ),
    Provider(
        name="vllm",
        base_url="http://127.0.0.1:8000/v1",
        completions=True,
        cannot=("best_of", "suffix", "user"),
        limits=FOUR_STOPS,  # unless the server has another VLLM_MAX_STOP_STRINGS
        # With usage in each chunk, the usage of a stopped stream is exact.
        stream_options={"include_usage": True, "continuous_usage_stats": True},
        tokenizer="vllm",
        fim=BY_TEMPLATE,
    ),
    Provider(
        name="sglang",
        base_url="http://127.0.0.1:30000/v1",
        completions=True,
        cannot=("best_of", "suffix", "user"),  # ignored, unless it has a template of its own
        stream_options={"include_usage": True, "continuous_usage_stats": True},
        fim=BY_TEMPLATE,
    ),
    Provider(
        name="llamacpp",
        base_url="http://127.0.0.1:8080/v1",
        completions=True,
        # Its usage covers only the first choice of a response.
        cannot=("best_of", "suffix", "echo", "user", "prompt_list", "choice_list"),
        tokenizer="llamacpp",
        fim=(Fim(path="/infill", dialect="infill"),),
    ),
    Provider(
        name="lmstudio",
        base_url="http://127.0.0.1:1234/v1",
        completions=True,
        cannot=("n", "best_of", "echo", "logprobs", "user", "suffix"),
        fim=BY_TEMPLATE,
    ),
)
