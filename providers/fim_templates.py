"""Fill-in-the-middle templates: how each family of models was trained to see a gap in a text.

- The module is pure: data, and functions from a model's name and the texts to a prompt.
- A host that only continues a prompt can fill a gap if the prompt has the tokens that the model's
  family was trained on. Hosts read them in the prompt as special tokens.
- The texts go into the prompt as they are. If they contain such tokens, the model sees those too.
- Families are ordered from the most special to the most general: the first that matches counts.

Sources: those of each family (read 2026-11).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final

import msgspec

from completion import SourceFile

SNIPPET: Final = "\n\n--- snippet ---\n\n{text}"
"""The layout of another file for families without one of their own, as llama.cpp writes it."""
REPOSITORY: Final = "repository"
CURRENT: Final = "current"
"""The names that stand for the repository and for the file with the gap. No client sends them."""


class FimTemplate(msgspec.Struct, frozen=True, kw_only=True):
    """The prompt and the stop strings of a family."""

    name: str
    prompt: str
    """The prompt, with {prefix} and {suffix} for the texts before and after the gap, and {files}
    for the other files; without {files} they come first."""
    models: tuple[str, ...] = ()
    """Globs of the models' names, in lower case and without an owner or folder."""
    unless: tuple[str, ...] = ()
    """Globs of models that match `models` but weren't trained to fill gaps."""
    stop: tuple[str, ...] = ()
    """The strings that end the text: the tokens that may follow it. Those that the model writes
    most come first, because some hosts take only a few."""
    file: str = SNIPPET
    """The layout of another file, with {path} and {text}."""
    repository: str = "{files}"
    """The text around the other files, with {files}; unused if there are none."""
    file_stop: tuple[str, ...] = ()
    """More stop strings if there are other files."""
    source: str = ""


def tokens(*names: str, left: str = "<|", right: str = "|>") -> tuple[str, ...]:
    return tuple(f"{left}{name}{right}" for name in names)


FIM: Final = tokens("fim_prefix", "fim_suffix", "fim_middle")
BARE_FIM: Final = tokens("fim_prefix", "fim_suffix", "fim_middle", left="<", right=">")
CODE_FIM: Final = tokens("code_prefix", "code_suffix", "code_middle")
DEEPSEEK_FIM: Final = tokens("fim▁begin", "fim▁hole", "fim▁end", left="<\uff5c", right="\uff5c>")
END: Final = "<|endoftext|>"
PREFIX_FIRST: Final = "<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>"
BARE_PREFIX_FIRST: Final = "<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>"

FAMILIES: Final = (
    FimTemplate(
        name="qwen-coder",
        models=("*qwen2[._p]5-coder*", "*qwen2[._p]5coder*", "*qwen3-coder*", "*qwen3coder*"),
        prompt=PREFIX_FIRST,
        stop=(
            END,
            *tokens("file_sep", "fim_pad", "repo_name"),
            *FIM,
            *tokens("im_end", "im_start"),
        ),
        file="<|file_sep|>{path}\n{text}\n",
        repository=f"<|repo_name|>{REPOSITORY}\n{{files}}<|file_sep|>{CURRENT}\n",
        source="QwenLM/Qwen3-Coder and Qwen2.5-Coder, README; Continue",
    ),
    FimTemplate(
        name="codeqwen",
        models=("*codeqwen*",),
        prompt=BARE_PREFIX_FIRST,
        stop=(END, *BARE_FIM),
        source="Tabby's registry of models; Continue",
    ),
    FimTemplate(
        name="deepseek",
        models=("*deepseek-coder*", "*deepseek-v4*"),
        prompt="{}{{prefix}}{}{{suffix}}{}".format(*DEEPSEEK_FIM),
        stop=(*tokens("end▁of▁sentence", left="<\uff5c", right="\uff5c>"), *DEEPSEEK_FIM),
        source="Continue, Tabby; for V4 issue 44228 of vLLM",
    ),
    FimTemplate(
        name="starcoder2",
        models=("*starcoder2*",),
        prompt=BARE_PREFIX_FIRST,
        stop=(END, "<file_sep>", *BARE_FIM),
        file="<file_sep>{text}",
        repository="{files}<file_sep>",
        source="arXiv 2402.19173, section 5.1; Continue",
    ),
    FimTemplate(
        name="santacoder",
        models=("*santacoder*",),
        prompt="<fim-prefix>{prefix}<fim-suffix>{suffix}<fim-middle>",
        stop=(END, *tokens("fim-prefix", "fim-suffix", "fim-middle", left="<", right=">")),
        source="llama.cpp's vocabulary",
    ),
    FimTemplate(
        name="starcoder",
        models=("*starcoder*", "*star-coder*"),
        prompt=BARE_PREFIX_FIRST,
        stop=(END, *BARE_FIM),
        source="Tabby's registry of models; llama.cpp's vocabulary",
    ),
    FimTemplate(
        name="codellama",
        models=("*codellama*7b*", "*code-llama*7b*", "*codellama*13b*", "*code-llama*13b*"),
        unless=("*python*",),
        prompt="<PRE> {prefix} <SUF>{suffix} <MID>",
        stop=("<EOT>", "<MID>", "<SUF>", "<PRE>"),
        source="Continue, Tabby, Zed",
    ),
    FimTemplate(
        name="codegemma",
        models=("*codegemma*",),
        unless=("*-it", "*-it[-_.:@]*", "*instruct*"),
        prompt=PREFIX_FIRST,
        stop=("<|file_separator|>", "<eos>", *FIM, "<end_of_turn>"),
        file="{text}<|file_separator|>",
        source="Google, CodeGemma prompt structure; Continue",
    ),
    FimTemplate(
        name="codestral",
        models=("*codestral*",),
        unless=("*mamba*", "*embed*"),
        prompt="[SUFFIX]{suffix}[PREFIX]{files}{prefix}",
        stop=("[PREFIX]", "[SUFFIX]"),
        file="+++++ {path}\n{text}\n\n",
        repository=f"{{files}}+++++ {CURRENT}\n",
        file_stop=("\n+++++ ",),
        source="mistral-common, encode_fim; Continue, Zed",
    ),
    FimTemplate(
        name="granite-4",
        models=("*granite-4[-._]*", "*granite4*"),
        unless=("*guardian*", "*embed*", "*vision*", "*speech*"),
        prompt=PREFIX_FIRST,
        stop=("<|end_of_text|>", *FIM, "<|fim_pad|>"),
        source="Continue, citing IBM's page on Granite",
    ),
    FimTemplate(
        name="granite-code",
        models=("*granite-*-code*", "*granite-code*"),
        prompt=BARE_PREFIX_FIRST,
        stop=(END, *BARE_FIM, "<fim_pad>"),
        source="llama.cpp's vocabulary; Ollama's parameters",
    ),
    FimTemplate(
        name="codegeex4",
        models=("*codegeex4*",),
        prompt="<|user|>\n{files}###MODE:BLOCK\n<|code_suffix|>{suffix}<|code_prefix|>{prefix}"
        "<|code_middle|><|assistant|>\n",
        stop=(END, *tokens("user", "assistant"), *CODE_FIM),
        file="###REFERENCE:\n###PATH:{path}\n{text}\n",
        source="CodeGeeX4, guideline on infilling; Continue",
    ),
    FimTemplate(
        name="glm-4",
        models=("glm-4-*", "glm-4", "*[!a-z]glm-4-*", "glm-4.5*", "*[!a-z]glm-4.5*"),
        unless=("*glm-4.5v*",),
        prompt="<|code_prefix|>{prefix}<|code_suffix|>{suffix}<|code_middle|>",
        stop=(END, *CODE_FIM),
        source="Zed; llama.cpp's vocabulary",
    ),
    FimTemplate(
        name="seed-coder",
        models=("*seed-coder*",),
        prompt="<[fim-suffix]>{suffix}<[fim-prefix]>{prefix}<[fim-middle]>",
        stop=(
            "<[end▁of▁sentence]>",
            *tokens("fim-suffix", "fim-prefix", "fim-middle", left="<[", right="]>"),
        ),
        source="Seed-Coder's technical report (Continue puts the prefix first)",
    ),
    FimTemplate(
        name="mellum",
        models=("*mellum*",),
        prompt="<fim_suffix>{suffix}<fim_prefix>{prefix}<fim_middle>",
        stop=(END, "<filename>"),
        file="<filename>{path}\n{text}",
        repository=f"{{files}}<filename>{CURRENT}\n",
        source="Mellum's model card; Ollama, JetBrains/mellum2",
    ),
    FimTemplate(
        name="stable-code",
        models=("*stable-code*",),
        unless=("*instruct*",),
        prompt=BARE_PREFIX_FIRST,
        stop=(END, *BARE_FIM),
        source="Continue",
    ),
    FimTemplate(
        name="refact",
        models=("*refact-1_6b*", "*refact-1.6b*"),
        prompt=BARE_PREFIX_FIRST,
        stop=(END, *BARE_FIM),
        source="Refact's model card",
    ),
    FimTemplate(
        name="falcon-h1-tiny-coder",
        models=("*falcon-h1-tiny-coder*",),
        prompt="<|prefix|>{prefix}<|suffix|>{suffix}<|middle|>",
        stop=tokens("middle", "suffix", "prefix"),
        source="llama.cpp's vocabulary (the order is an assumption)",
    ),
)
"""The known families. Models that have such tokens but weren't trained on them (OpenCoder,
replit-code), or that rewrite a region (Zeta), are in none."""

BY_NAME: Final[Mapping[str, FimTemplate]] = {family.name: family for family in FAMILIES}


@lru_cache(1024)  # callers choose the names of models, so the number must be bounded
def family_of(model: str) -> FimTemplate | None:
    """Return the template of a model's family; None if its name tells no family."""
    name = model.rstrip("/").rpartition("/")[2].lower()
    return next((family for family in FAMILIES if belongs(name, family)), None)


def belongs(name: str, family: FimTemplate) -> bool:
    return any(fnmatchcase(name, glob) for glob in family.models) and not any(
        fnmatchcase(name, glob) for glob in family.unless
    )


PLACEHOLDER: Final = re.compile(r"\{([a-z_]+)\}")
PROMPT_HAS: Final = ("prefix", "suffix", "files")
FILE_HAS: Final = ("path", "text")
REPOSITORY_HAS: Final = ("files",)
"""The placeholders of a template's parts."""


def build(template: FimTemplate, prefix: str, suffix: str, files: Iterable[SourceFile] = ()) -> str:
    """Return the prompt for a gap between two texts.

    Args:
        files: other files of the repository, in the order in which the model sees them.
    """
    layout = template.prompt if "{files}" in template.prompt else "{files}" + template.prompt
    others = "".join(filled(template.file, path=one.path, text=one.text) for one in files)
    around = filled(template.repository, files=others) if others else ""
    return filled(layout, prefix=prefix, suffix=suffix, files=around)


def stops(template: FimTemplate, files: Iterable[SourceFile] = ()) -> tuple[str, ...]:
    """Return the strings that end the text in the gap."""
    return (*template.stop, *template.file_stop) if tuple(files) else template.stop


def filled(layout: str, **values: str) -> str:
    """Replace the placeholders of a layout. What the values contain is never replaced."""
    return "".join(pieces(layout, values))


def pieces(layout: str, values: Mapping[str, str]) -> Iterator[str]:
    for number, part in enumerate(PLACEHOLDER.split(layout)):
        yield values[part] if number % 2 else part
