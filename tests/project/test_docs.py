"""Tests that the documentation agrees with the code: its links, tables and test names."""

from __future__ import annotations

import re

from cli.providers import family_table, provider_table
from config import VARIABLES, Settings
from providers.base import Fim, Provider
from providers.hosts import BUILT_IN
from tests.project.test_surface import ROUTES
from tests.support.paths import ROOT

LINK = re.compile(r"(?:\]\(|src=\")(?!https?:)([^)#\"]+)")
"""A relative link, or the file of a picture."""
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), ROOT / "bench/README.md"]


def test_every_relative_link_leads_to_an_existing_file() -> None:
    for path in PAGES:
        for target in LINK.findall(path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_every_anchor_is_a_heading() -> None:
    for path in PAGES:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", path.read_text()):
            text = (path.parent / target).read_text() if target else path.read_text()
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            assert anchor in map(anchor_of, headings), f"{path.name}: {target}#{anchor}"


def test_text_is_wrapped_at_100_columns() -> None:
    """Tables, code and pictures have their own lengths, and so have links that can't be broken."""
    for path in PAGES:
        prose = re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        for line in prose.splitlines():
            exempt = line.startswith(("|", "    ", "<img")) or len(line.split()) == 1
            assert exempt or len(line) <= 100, f"{path.name}: {line}"


def test_the_documentation_has_one_name_for_the_command_line() -> None:
    commands = re.compile(r"\bflask (?:keys|usage|ledger|providers|quickstart)\b")
    found = [path.name for path in PAGES for _ in commands.findall(path.read_text())]
    assert sorted(set(found)) == ["CHANGELOG.md", "quickstart.md"]
    assert found.count("quickstart.md") == 1


def test_the_facts_at_the_top_of_the_readme_are_true() -> None:
    readme, setup = (ROOT / "README.md").read_text(), (ROOT / "setup.cfg").read_text()
    [version] = re.findall(r"python_requires = >=([\d.]+)", setup)
    assert f"[MIT license](LICENSE) · Python {version} or newer" in readme
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    others = [row for row in BUILT_IN if row.dialect != "local"]
    engines = sum("//127.0.0.1:" in row.base_url for row in others)
    providers = f"{len(others) - engines} hosted providers and {engines} local engines"
    assert f"- **Providers.** {providers} are built in" in readme
    assert f"| those of {providers}, " in readme
    assert (ROOT / "docs/screenshots/stop.gif").stat().st_size < 1_000_000


def anchor_of(heading: str) -> str:
    """Return a heading's anchor, in GitHub's form."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_the_documented_defaults_equal_those_of_the_settings() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| ([^|]*?) ?\|",
        (ROOT / "docs/reference/configuration.md").read_text(),
        re.MULTILINE,
    )
    documented, settings = dict(rows), Settings()
    for name, field, parse in VARIABLES:
        found = getattr(settings, field, None) or getattr(settings.timeouts, field, None)
        if documented[name] and name != "SLUICE_CONFIG":  # its default file may be missing
            assert parse(name, documented[name]) == (found or 0), name
        else:
            assert not found or name == "SLUICE_CONFIG", name


def test_every_test_named_in_the_documentation_exists() -> None:
    found = 0
    for path in PAGES:
        for name, test in re.findall(r"`((?:\w+/)*test_\w+\.py)::(\w+)`", path.read_text()):
            assert f"def {test}(" in (ROOT / "tests" / name).read_text(), f"{path.name}: {test}"
            found += 1
    assert found > 30


def test_the_documented_provider_table_matches_the_built_in_rows() -> None:
    assert provider_table(BUILT_IN) in (ROOT / "docs/guides/providers.md").read_text()


def test_the_documented_families_of_models_are_those_of_the_code() -> None:
    assert family_table() in (ROOT / "docs/guides/providers.md").read_text()


def test_each_field_of_a_fim_rule_is_documented() -> None:
    text = (ROOT / "docs/guides/providers.md").read_text()
    table = text.partition("| field of a rule |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| (`[^|]*`) \|", table, re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == {
        *Fim.__struct_fields__
    }


def test_the_guide_for_editors_names_only_paths_of_this_server() -> None:
    text = (ROOT / "docs/guides/editors.md").read_text()
    paths = set(re.findall(r"`(GET|POST) (/[^`]+)`", text))
    assert paths <= ROUTES
    assert ("POST", "/infill") in paths
    addresses = re.findall(r"http://127\.0\.0\.1:8000(/[\w/.-]*)?", text)
    assert all(
        any(route.startswith(address) for _, route in ROUTES) for address in filter(None, addresses)
    )


def test_every_field_of_a_provider_row_is_documented() -> None:
    text = (ROOT / "docs/guides/providers.md").read_text()
    documented = set(re.findall(r"^\| `(\w+)` \| [^`|]*[a-z]", text, re.MULTILINE))
    assert set(Provider.__struct_fields__) - {"name", "replicas"} <= documented
