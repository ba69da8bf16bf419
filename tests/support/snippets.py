"""The code blocks in README.md and docs/, and how the tests check them.

`python -m tests.support.snippets` prints a list.

- A block is run, or parsed by the code that would read it, or listed in NOT_RUN with a reason.
- tests/live/test_snippets.py fails for any other block, for a reason whose block is gone, and for a
  reason that names a test that doesn't exist.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.paths import ROOT

PAGES: Final = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
JOURNEYS: Final = ("README.md", "docs/quickstart.md")
"""The pages whose blocks run in order, with the server that their `make run` starts."""

FENCE = re.compile(r"( *)```(\w*)\s*$")
INDENTED = re.compile(r" {4,}\S")
ASSIGNMENT = re.compile(r"[A-Z][A-Z_]*=\S+$")

ROOT_NEEDED = "needs root, and changes the machine"
DOCKER = "needs Docker and its images; test_deploy_docs.py checks the files"
HEROKU = "needs a Heroku account"
WHOLE_SUITE = "runs all tests, and a soak of ten minutes; tests/live/test_soak.py has a short one"
EDITORS = "tests/live/test_editors.py::test_each_client_reads_the_text_however_its_host_fills_in"
SHAPE = "shows the shape of a response"

NOT_RUN: Final[dict[tuple[str, str], str]] = {
    ("README.md", "docker build"): DOCKER,
    ("docs/guides/harnesses.md", "OPENAI_API_KEY=KEY lm_eval"): (
        "needs lm-eval and its data; tests/live/test_harnesses.py sends what it sends"
    ),
    ("docs/quickstart.md", "./sluice setup --dev"): WHOLE_SUITE,
    (
        "docs/reference/api.md",
        "export SLUICE_URL=",
    ): "tests/live/test_snippets.py::test_each_example_of_the_documentation_runs",
    ("docs/reference/api.md", "event: usage_start"): SHAPE,
    ("docs/reference/api.md", "model,requests,cost_usd"): SHAPE,
    (
        "docs/reference/api.md",
        "X-Sluice-Timeout: 30",
    ): "tests/endpoints/test_calls.py::test_timeout_header_parses_into_time_limits",
    (
        "docs/reference/api.md",
        "X-Sluice-Affinity: conversation-17",
    ): "tests/gateway/test_replicas.py::test_calls_with_one_affinity_key_go_to_one_replica",
    ("docs/reference/api.md", '{"code": "rate_limited"'): SHAPE,
    (
        "docs/guides/keys.md",
        "./sluice keys list [--limits]",
    ): "is a synopsis; tests/cli/test_cli.py runs each command",
    ("docs/guides/keys.md", '{"id":"key_...'): (
        "tests/keys/test_store.py::test_the_key_file_holds_the_documented_fields_and_no_secret"
    ),
    ("docs/guides/resumable.md", "id: 1\ndata: "): SHAPE,
    ("docs/guides/editors.md", "let g:llama_config"): EDITORS,
    ("docs/guides/editors.md", "[model.completion.http]"): EDITORS,
    ("docs/guides/editors.md", "require('minuet')"): EDITORS,
    ("docs/guides/editors.md", 'curl -sS "$SLUICE_URL/v1/completions"'): (
        "needs a model that fills in the middle; tests/live/test_editors.py has a simulated one"
    ),
    ("docs/guides/operate.md", "location /llm/ {"): (
        "tests/live/test_prefix.py::test_everything_that_pages_refer_to_is_below_the_prefix"
    ),
    ("docs/guides/operate.md", "cp /backups/"): (
        "tests/cli/test_usage.py::test_a_restored_backup_replaces_the_ledger"
    ),
    ("docs/guides/deploy/docker.md", "docker build"): DOCKER,
    ("docs/guides/deploy/docker.md", 'echo "POSTGRES_PASSWORD='): DOCKER,
    ("docs/guides/deploy/heroku.md", "python3 -m venv"): HEROKU,
    ("docs/guides/deploy/heroku.md", "heroku config:set SLUICE_KEYS"): HEROKU,
    ("docs/guides/deploy/heroku.md", "heroku addons:create heroku-redis"): HEROKU,
    (
        "docs/guides/deploy/heroku.md",
        "curl -H",
    ): "is only a part of a command, which shows a header",
    ("docs/guides/deploy/scale.md", "upstream sluice"): (
        "tests/live/test_nginx.py::test_nginx_accepts_the_blocks_of_the_scale_guide"
    ),
    ("docs/guides/deploy/scale.md", "upstream cells"): (
        "tests/live/test_nginx.py::test_nginx_accepts_the_blocks_of_the_scale_guide"
    ),
    ("docs/guides/deploy/vm.md", "sudo apt install"): ROOT_NEEDED,
    ("docs/guides/deploy/vm.md", "sudo tee .env"): ROOT_NEEDED,
    ("docs/guides/deploy/vm.md", "sudo -u sluice ./sluice keys create"): ROOT_NEEDED,
    ("docs/guides/deploy/vm.md", "sudo cp deploy/sluice.service"): ROOT_NEEDED,
    ("docs/guides/deploy/vm.md", "sudo certbot"): ROOT_NEEDED + "; also needs a public domain name",
    ("docs/guides/deploy/vm.md", "sudo cp deploy/nginx.conf"): ROOT_NEEDED,
    ("docs/guides/deploy/vm.md", "sudo sed -i"): ROOT_NEEDED,
    ("docs/guides/deploy/vm.md", "sudo cp deploy/logrotate.conf"): ROOT_NEEDED,
    ("docs/guides/deploy/vm.md", "sudo -u sluice ./sluice providers"): ROOT_NEEDED,
    ("docs/guides/deploy/vm.md", "cd /opt/sluice"): ROOT_NEEDED,
}


class Snippet(NamedTuple):
    page: str
    line: int
    language: str
    """The word after the fence. For an indented block: toml, env, shape or shell; see
    `language`."""
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def reason(self) -> str | None:
        """The block's entry in NOT_RUN: a reason, or the test that runs it elsewhere. Else None."""
        for (page, beginning), reason in NOT_RUN.items():
            if page == self.page and self.text.startswith(beginning):
                return reason
        return None

    @property
    def how(self) -> str:
        if self.reason is not None:
            kind = "elsewhere" if self.reason.startswith("tests/") else "not run"
            return f"{kind}: {self.reason}"
        return "read" if self.language in READ else "run" if self.language in RUN else "unknown"


RUN: Final = ("sh", "python", "js", "shell")
READ: Final = ("toml", "env", "json", "yaml")


def snippets() -> list[Snippet]:
    return [found for path in PAGES for found in of_page(path)]


def of_page(path: Path) -> Iterator[Snippet]:
    page = path.relative_to(ROOT).as_posix()
    lines = path.read_text().splitlines()
    at = 0
    while at < len(lines):
        begin = at
        if fence := FENCE.match(lines[at]):
            at += 1
            while not FENCE.match(lines[at]):
                at += 1
            text = dedented(lines[begin + 1 : at])
            yield Snippet(page, begin + 1, fence[2] or "unknown", text)
        elif INDENTED.match(lines[at]) and (at == 0 or not lines[at - 1].strip()):
            while at < len(lines) and belongs(lines, at):
                at += 1
            text = dedented(lines[begin:at])
            yield Snippet(page, begin + 1, language(text), text)
            continue
        at += 1


def belongs(lines: list[str], at: int) -> bool:
    """Return True if a line belongs to the indented block before it.

    A blank line belongs to the block if the next line does.
    """
    if lines[at].strip():
        return INDENTED.match(lines[at]) is not None
    return at + 1 < len(lines) and INDENTED.match(lines[at + 1]) is not None


def dedented(lines: list[str]) -> str:
    margin = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return "".join(line[margin:] + "\n" for line in lines)


def language(text: str) -> str:
    """Guess the language of an indented block."""
    if text.startswith("["):
        return "toml"
    if text.startswith("{"):
        return "shape"
    if all(ASSIGNMENT.match(line) for line in text.splitlines()):
        return "env"
    return "shell"


def main() -> None:
    found = snippets()
    for snippet in found:
        print(f"{snippet.place:<34} {snippet.language:<7} {snippet.how}")
    counts = Counter(snippet.how.partition(":")[0] for snippet in found)
    print(f"{len(found)} snippets:", ", ".join(f"{n} {how}" for how, n in counts.items()))


if __name__ == "__main__":
    main()
