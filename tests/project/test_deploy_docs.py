"""Tests that the deployment guides and files agree with the code.

Files, variables and commands that they name must exist, and timeouts of proxies and service
managers must fit Sluice's timeouts.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from app import create_app
from config import VARIABLES, Settings
from providers.hosts import BUILT_IN
from tests.support.pace import HANG_S
from tests.support.paths import ROOT

GUIDES = sorted((ROOT / "docs/guides/deploy").glob("*.md"))
NGINX = ROOT / "deploy/nginx.conf"
UNIT = ROOT / "deploy/sluice.service"
FILES = [*GUIDES, *sorted(p for p in (ROOT / "deploy").rglob("*") if p.is_file())]
FILES += [ROOT / "Dockerfile", ROOT / "compose.yaml", ROOT / ".dockerignore"]
FAREWELL_S = 10
"""The seconds that process managers must wait beyond SLUICE_DRAIN_S; see docs/guides/operate.md."""
UNITS = {"": 1, "s": 1, "k": 1024, "m": 1024 * 1024}
BLOCK = re.compile(r"^ *(upstream \w+ \{\n.*?^ *\}$)", re.MULTILINE | re.DOTALL)
by_name = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def value(path: Path, name: str) -> int:
    """Return a setting in a file of nginx, systemd or Compose, in seconds or bytes."""
    found = re.search(rf"^\s*{name}[ =:]+(\d+)([smk]?)\b", path.read_text(), re.MULTILINE)
    assert found, f"{path.name}: {name}"
    return int(found[1]) * UNITS[found[2]]


@by_name
def test_variables_named_in_deploy_files_exist(path: Path) -> None:
    ours = {variable.name for variable in VARIABLES} | {"SLUICE_KEY", "SLUICE_URL"}
    theirs = {name for row in BUILT_IN for name in re.findall(r"\w+_API_KEY", repr(row))}
    named = set(re.findall(r"\b(?:SLUICE_[A-Z_]+|[A-Z]+_URL|WEB_CONCURRENCY)\b", path.read_text()))
    assert named <= ours
    assert set(re.findall(r"\b[A-Z]+_API_KEY\b", path.read_text())) <= theirs


@by_name
def test_files_named_in_deploy_files_exist(path: Path) -> None:
    text = path.read_text()
    for name in re.findall(r"(?<![\w/.])((?:deploy|docs)/[\w./-]*\w|requirements\.txt)", text):
        assert (ROOT / name).exists(), name


def test_sluice_commands_in_deploy_guides_exist_with_their_options() -> None:
    context = click.Context(create_app(Settings()).cli)
    found = 0
    for path in GUIDES:
        for line in re.findall(
            r"sluice ((?:keys|usage|ledger|providers)\b[^\n`;)|]*)", path.read_text()
        ):
            words = shlex.split(line)
            command: click.Command = create_app(Settings()).cli
            while isinstance(command, click.Group) and not (
                command.invoke_without_command and not words
            ):
                known = command.get_command(context, words[0])
                assert known is not None, line
                command, words = known, words[1:]
            options = {option for param in command.params for option in param.opts}
            assert {word for word in words if word.startswith("--")} <= options, line
            found += 1
    assert found > 5


def test_procfile_systemd_unit_and_docker_image_run_one_command() -> None:
    procfile = (ROOT / "Procfile").read_text().removeprefix("web:").split()
    unit = re.search(r"^ExecStart=\S+/bin/(.+)$", UNIT.read_text(), re.MULTILINE)
    image = re.search(r"^CMD (\[.+\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert unit is not None
    assert image is not None
    assert unit[1].split() == procfile
    assert re.findall(r'"([^"]*)"', image[1]) == procfile


def test_stop_timeouts_of_systemd_and_docker_cover_the_drain_time() -> None:
    needed = Settings().drain + FAREWELL_S
    assert value(UNIT, "TimeoutStopSec") >= needed
    assert value(ROOT / "compose.yaml", "stop_grace_period") >= needed
    stop = re.search(r"--stop-timeout (\d+)", (ROOT / "docs/guides/deploy/docker.md").read_text())
    assert stop is not None
    assert int(stop[1]) >= needed


def test_nginx_limits_fit_the_timeouts_and_body_limit_of_sluice() -> None:
    settings = Settings()
    assert value(NGINX, "proxy_read_timeout") > settings.timeouts.total
    assert value(NGINX, "client_max_body_size") > settings.max_chat_body
    assert value(NGINX, "client_body_buffer_size") >= value(NGINX, "client_max_body_size")
    conf = (ROOT / "gunicorn.conf.py").read_text()
    keepalive = re.search(r"^keepalive = (\d+)", conf, re.MULTILINE)
    assert keepalive is not None
    assert value(NGINX, "keepalive_timeout") < int(keepalive[1])


def test_the_defaults_meet_the_rules_of_heroku() -> None:
    settings = Settings()
    assert settings.first_event_wait < 30
    assert settings.keepalive < 55
    assert settings.drain <= 25


def test_docker_image_holds_only_code_pages_and_requirements() -> None:
    rules = (ROOT / ".dockerignore").read_text().split()
    assert rules[0] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    packages = {path.parent.name for path in ROOT.glob("[!.]*/__init__.py")} - {"tests", "bench"}
    pages = {name for name in ("static", "templates") if (ROOT / name).is_dir()}
    assert let_in == {"*.py", "requirements.txt", "sluice"} | packages | pages


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze isn't installed")
def test_systemd_accepts_the_unit_file(tmp_path: Path) -> None:
    # Here the unit's program isn't at the path at which the guide installs it.
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE)
    unit = tmp_path / UNIT.name
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert [line for line in done.stderr.splitlines() if UNIT.name in line] == []
