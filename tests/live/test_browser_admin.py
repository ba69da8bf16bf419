"""Tests of the admin page in a real Chromium with a real server.

- Without Chromium these tests are skipped.
- Every test also checks that the console stayed empty, that nothing violated the content security
  policy, and that no request went to another host.
- test_browser_quick.py has one more: an admin gives out a key.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support import calls
from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S
from tests.support.pages import fits, sign_in, slow, violations
from tests.support.paths import ROOT
from tests.support.servers import UNTROUBLED, Server, fake_rows, make_key

pytestmark = pytest.mark.thorough

KEYS = "/api/v1/keys"
WAIT_MS = 1000 * HANG_S

Api = Callable[..., requests.Response]


GROUPS = """
[groups.research]
budget_usd = 50
budget_period = "month"
models = ["fake/*", "local/*"]

[groups.interns]
requests_per_minute = 10
"""


@pytest.fixture(scope="module")
def module_server(fake_process: FakeProvider) -> Iterator[Server]:
    """Yield a server that has groups of keys."""
    with Server(fake_rows(fake_process.base_url) + GROUPS, env=UNTROUBLED) as server:
        yield server


@pytest.fixture
def ordinary(server: Server) -> str:
    """Return the server's first key, which isn't an admin key."""
    return server.key


@pytest.fixture(autouse=True)
def admin(server: Server, ordinary: str) -> Iterator[str]:
    """Give the server's tests an admin key, and delete what they have added afterwards."""
    path = server.directory / "keys.jsonl"
    before = path.read_text()
    server.key = server.add_key("operator", admin=True)
    yield server.key
    server.key = ordinary
    path.write_text(before)


@pytest.fixture
def api(server: Server) -> Api:
    """Return a function that makes a request with the admin key."""
    headers = {"Authorization": f"Bearer {server.key}"}

    def ask(method: str, path: str, **options: Any) -> requests.Response:
        url = f"{server.url}{path}"
        return requests.request(method, url, headers=headers, timeout=HANG_S, **options)

    return ask


def row(page: Page, name: str) -> Locator:
    return page.locator("#key-table tbody tr", has=page.locator(".name", has_text=name))


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def accepted(server: Server, key: str) -> int:
    """Return the status of a call with a key."""
    headers = {"Authorization": f"Bearer {key}"}
    url = f"{server.url}/api/v1/models"
    return requests.get(url, headers=headers, timeout=HANG_S).status_code


def refuse(server: Server) -> None:
    """Make a call with a key that is refused, which adds to the counts of refused calls."""
    admin, server.key = server.key, server.add_key("thrifty", requests_per_minute=0)
    with suppress(Exception):
        calls.complete(server, model="local/pydoc", max_tokens=5)
    server.key = admin


def test_a_key_that_is_not_an_admin_key_sees_a_plain_sentence(
    page: Page, server: Server, ordinary: str
) -> None:
    server.key = ordinary
    sign_in(page, server, "/admin")
    expect(page.get_by_role("heading", name="This key isn\u2019t an admin key")).to_be_visible()
    expect(page.locator("#not-admin")).to_contain_text("./sluice keys create --name NAME --admin")
    expect(page.locator("#admin")).to_be_hidden()


def test_mistakes_are_shown_at_their_fields_and_nothing_is_created(
    page: Page, server: Server, api: Api
) -> None:
    sign_in(page, server, "/admin")
    press(page, "New key")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Budget in US dollars").fill("five")
    press(page, "Create key")
    name = dialog.get_by_label("Name", exact=True)
    expect(name).to_be_focused()
    expect(dialog.get_by_text("Give the key a name.")).to_be_visible()
    expect(dialog.get_by_text("Type a number such as 20, or nothing.")).to_be_visible()
    dialog.get_by_label("Budget in US dollars").fill("5")
    name.fill("operator")
    press(page, "Create key")
    expect(page.locator("#f-name-error")).to_contain_text("operator")
    expect(name).to_have_attribute("aria-invalid", "true")
    name.fill("ada")
    dialog.get_by_text("More limits").click()
    dialog.get_by_label("Expires (UTC)").fill("2020-01-31")
    dialog.get_by_text("More limits").click()
    press(page, "Create key")
    expect(dialog.get_by_label("Expires (UTC)")).to_be_focused()  # the section is open again
    expect(page.locator("#f-expires-error")).to_contain_text("future")
    expect(page.locator("#f-name-error")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="New key")).to_be_focused()
    assert "ada" not in [key["name"] for key in api("GET", KEYS).json()["data"]]


def test_a_change_by_somebody_else_is_shown_and_both_changes_can_be_kept(
    page: Page, server: Server, api: Api
) -> None:
    api("POST", KEYS, json={"name": "ada", "budget_usd": 5, "budget_period": "month"})
    sign_in(page, server, "/admin")
    press(page, "Change ada")
    page.get_by_label("Requests per minute").fill("20")
    api("PATCH", f"{KEYS}/ada", json={"budget_usd": 9})
    press(page, "Save")
    notice = page.locator("#key-changed")
    expect(notice).to_contain_text("Somebody else has changed this key meanwhile")
    expect(notice).to_contain_text("Budget: $5.00 → $9.00")
    assert api("GET", f"{KEYS}/ada").json()["requests_per_minute"] is None
    press(page, "Save my changes too")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.get_by_role("button", name="Change ada")).to_be_focused()
    expect(row(page, "ada")).to_contain_text("20 requests a minute")
    expect(row(page, "ada")).to_contain_text("of $9.00 a month")
    found = api("GET", f"{KEYS}/ada").json()
    assert (found["budget_usd"], found["requests_per_minute"]) == (9, 20)


def test_own_changes_can_be_dropped_for_those_of_somebody_else(
    page: Page, server: Server, api: Api
) -> None:
    api("POST", KEYS, json={"name": "ada", "budget_usd": 5})
    sign_in(page, server, "/admin")
    press(page, "Change ada")
    page.get_by_label("Budget in US dollars").fill("7")
    api("PATCH", f"{KEYS}/ada", json={"budget_usd": 9})
    press(page, "Save")
    expect(page.locator("#key-changed")).to_contain_text("$5.00 → $9.00 (you: $7.00)")
    press(page, "Drop my changes")
    expect(page.get_by_label("Budget in US dollars")).to_have_value("9")
    press(page, "Save")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert api("GET", f"{KEYS}/ada").json()["budget_usd"] == 9


def test_the_last_changes_of_a_key_say_when_by_whom_and_what(
    page: Page, server: Server, api: Api
) -> None:
    api("POST", KEYS, json={"name": "ada", "budget_usd": 5})
    api("PATCH", f"{KEYS}/ada", json={"budget_usd": 9, "models": ["fake/*"]})
    rotate = ["keys", "rotate", "ada", "--overlap", "0"]
    subprocess.run(
        [sys.executable, "-m", "flask", "--app", "wsgi.py", *rotate],
        cwd=ROOT,
        env=server._env,
        check=True,
        timeout=HANG_S,
        stdout=subprocess.DEVNULL,
    )
    api("POST", KEYS, json={"name": "bob"})
    sign_in(page, server, "/admin")
    press(page, "Change ada")
    page.get_by_text("Last changes").click()
    entries = page.locator("#key-log li")
    expect(entries).to_have_count(3)
    rotated, changed, created = (entries.nth(at) for at in range(3))
    expect(rotated).to_contain_text("with a command on the server")
    expect(rotated).to_contain_text("Old secret refused at once")
    expect(changed).to_contain_text("Changed by operatoryou")
    expect(changed).to_contain_text("Budget: $5.00 \u2192 $9.00")
    expect(changed).to_contain_text("Models: all \u2192 fake/*")
    expect(created).to_contain_text("Budget: $5.00")
    log = api("GET", f"{KEYS}/log", params={"key": "ada"}).json()["data"]
    assert [entry["action"] for entry in log] == ["rotate", "change", "create"]
    expect(created.locator("time")).to_have_attribute("datetime", log[-1]["at"])
    page.keyboard.press("Escape")
    press(page, "Change bob")
    expect(entries.first).to_be_hidden()
    page.get_by_text("Last changes").click()
    expect(entries).to_have_count(1)
    page.keyboard.press("Escape")
    press(page, "New key")
    expect(page.get_by_text("Last changes")).to_be_hidden()


def test_only_the_last_ten_changes_of_a_key_are_shown(page: Page, server: Server, api: Api) -> None:
    for limit in range(11):
        api("PATCH", f"{KEYS}/test", json={"requests_per_minute": 100 + limit})
    sign_in(page, server, "/admin")
    press(page, "Change test")
    page.get_by_text("Last changes").click()
    expect(page.locator("#key-log li")).to_have_count(10)
    expect(page.locator("#key-log-hint")).to_contain_text("./sluice keys log --key key_")


def test_a_leaked_key_is_rotated_and_its_old_secret_refused_at_once(
    page: Page, server: Server, api: Api
) -> None:
    old = api("POST", KEYS, json={"name": "laptop"}).json()["key"]
    sign_in(page, server, "/admin")
    press(page, "Rotate laptop")
    page.get_by_label("The old secret").select_option("is refused at once (it has leaked)")
    press(page, "Rotate key")
    press(page, "Copy")
    expect(page.get_by_role("button", name="Done")).to_be_focused()
    new = page.evaluate("navigator.clipboard.readText()")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Rotate laptop")).to_be_focused()
    assert [accepted(server, key) for key in (old, new)] == [401, 200]


def test_escape_asks_once_before_it_loses_a_key_that_was_not_copied(
    page: Page, server: Server, api: Api
) -> None:
    api("POST", KEYS, json={"name": "laptop"})
    sign_in(page, server, "/admin")
    press(page, "Rotate laptop")
    press(page, "Rotate key")
    expect(page.locator("#secret")).to_contain_text("sk-sluice-")
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert").get_by_text("You haven\u2019t copied the key")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#secret")).to_have_text("")


def test_a_secret_can_be_copied_on_plain_http_and_is_selected_if_copying_fails(
    page: Page, server: Server, api: Api
) -> None:
    api("POST", KEYS, json={"name": "laptop"})
    page.add_init_script("navigator.clipboard.writeText = () => Promise.reject(new Error('no'));")
    sign_in(page, server, "/admin")
    press(page, "Rotate laptop")
    press(page, "Rotate key")
    press(page, "Copy")
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    secret = page.locator("#secret").inner_text()
    assert page.evaluate("navigator.clipboard.readText()") == secret
    page.evaluate("document.execCommand = () => false")
    press(page, "Copied")
    expect(page.locator("#secret-status")).to_contain_text("copy it with the keyboard")
    assert page.evaluate("getSelection().toString()").strip() == secret


def test_a_key_is_disabled_enabled_and_deleted_and_the_focus_stays_with_it(
    page: Page, server: Server, api: Api
) -> None:
    key = api("POST", KEYS, json={"name": "ada"}).json()["key"]
    sign_in(page, server, "/admin")
    for verb, back, status in (("Disable", "Enable", 401), ("Enable", "Disable", 200)):
        press(page, f"{verb} ada")
        press(page, verb)
        expect(page.get_by_role("button", name=f"{back} ada")).to_be_focused()
        assert accepted(server, key) == status
    press(page, "Delete ada")
    press(page, "Cancel")
    expect(page.get_by_role("button", name="Delete ada")).to_be_focused()
    press(page, "Delete ada")
    api("PATCH", f"{KEYS}/ada", json={"tier": "free"})
    press(page, "Delete")
    expect(page.locator("#ask-changed")).to_contain_text("Tier: unlimited → free")
    press(page, "Delete anyway")
    expect(row(page, "ada")).to_have_count(0)
    expect(page.get_by_role("button", name="New key")).to_be_focused()
    assert accepted(server, key) == 401


def test_a_key_file_that_cannot_be_written_shows_the_advice_of_the_server(
    page: Page, server: Server
) -> None:
    lock = server.directory / "keys.jsonl.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()  # this stops root too
    try:
        sign_in(page, server, "/admin")
        press(page, "New key")
        page.get_by_label("Name", exact=True).fill("ada")
        press(page, "Create key")
        problem = page.locator("#key-problem")
        expect(problem).to_contain_text("409 keys_read_only")
        expect(problem).to_contain_text("or use ./sluice keys on the server")
        expect(page.get_by_label("Name", exact=True)).to_have_value("ada")
    finally:
        lock.rmdir()


def test_the_keys_are_filtered_and_a_pasted_key_is_never_sent(
    page: Page, server: Server, api: Api
) -> None:
    for name in ("ada", "adam", "bob"):
        api("POST", KEYS, json={"name": name})
    api("PATCH", f"{KEYS}/adam", json={"disabled": True})
    sign_in(page, server, "/admin")
    expect(page.locator("#sum-keys-hint")).to_have_text("1 disabled")
    names = page.locator("#key-table .name")
    page.get_by_label("Search").fill("ADA")
    expect(names).to_have_count(2)
    assert sorted(names.all_inner_texts()) == ["ada", "adam"]
    page.get_by_label("Status").select_option("disabled")
    expect(names).to_have_text(["adam"])
    page.get_by_label("Search").fill("nobody")
    expect(page.locator("#key-table")).to_contain_text("No key fits. Change the filter.")
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    for label, box in (("Search", "#search-error"), ("Only the key", "#only-error")):
        page.get_by_label(label).fill(f"sk-{server.key}")
        expect(page.locator(box)).to_contain_text("This is a key itself")
    page.locator("#usage-csv").click()
    expect(page.locator("#only-error")).to_be_visible()
    assert not [url for url in urls if server.key in url]


def test_groups_are_listed_and_a_key_is_put_into_one(page: Page, server: Server, api: Api) -> None:
    server.add_key("lost", group="forgotten")
    api("POST", KEYS, json={"name": "ada"})
    sign_in(page, server, "/admin")
    rows = page.locator("#group-table tbody tr")
    expect(rows).to_have_count(3)
    research = rows.filter(has_text="research")
    expect(research).to_contain_text("$0.00 of $50.00 a month")
    expect(research).to_contain_text("only fake/*, local/*")
    expect(rows.filter(has_text="interns")).to_contain_text("10 requests a minute")
    expect(rows.filter(has_text="forgotten")).to_contain_text("not in sluice.toml")
    press(page, "Change ada")
    page.get_by_role("dialog").get_by_label("Group").select_option("research")
    press(page, "Save")
    expect(row(page, "ada")).to_contain_text("in research")
    expect(research.locator(".n")).to_have_text("1")
    page.get_by_role("search").get_by_label("Group").select_option("research")
    expect(page.locator("#key-table .name")).to_have_text(["ada"])
    key = api("POST", f"{KEYS}/ada/rotate", json={"overlap_s": 0}).json()["key"]
    admin, server.key = server.key, key
    calls.complete(server, model="local/pydoc", max_tokens=5)
    server.key = admin
    page.get_by_label("By", exact=True).select_option("group")
    expect(page.locator("#usage-table tbody th")).to_have_text(["research"])


def test_the_own_key_is_marked_and_its_dialogs_warn(page: Page, server: Server) -> None:
    sign_in(page, server, "/admin")
    expect(row(page, "operator")).to_contain_text("you")
    press(page, "Rotate operator")
    expect(page.get_by_role("dialog")).to_contain_text("You are signed in with this key.")
    page.keyboard.press("Escape")
    press(page, "Rotate test")
    expect(page.get_by_role("dialog").get_by_text("You are signed in")).to_be_hidden()


def test_a_change_of_a_key_on_a_later_page_keeps_that_page(page: Page, server: Server) -> None:
    for number in range(120):
        server.add_key(
            f"k{number:03}", created=f"2026-02-01T00:{number // 60:02}:{number % 60:02}Z"
        )
    sign_in(page, server, "/admin")
    rows = page.locator("#key-table tbody tr")
    expect(rows).to_have_count(100)
    press(page, "Show more")
    expect(rows).to_have_count(122)
    press(page, "Disable k119")
    press(page, "Disable")
    expect(page.get_by_role("button", name="Enable k119")).to_be_focused()
    expect(rows).to_have_count(122)
    expect(page.locator("#sum-keys-hint")).to_have_text("1 disabled")
    press(page, "Disable operator")
    press(page, "Disable")
    problem = page.locator("#ask-problem")  # the server says what to do first
    expect(problem).to_contain_text("409 last_admin_key")
    expect(problem).to_contain_text("Create another admin key first")


def test_keys_of_the_environment_are_shown_without_buttons(browser: Browser) -> None:
    key, line = make_key("operator", admin=True)
    server = Server(env=UNTROUBLED | {"SLUICE_KEYS": line})
    (server.directory / "keys.jsonl").unlink()
    server.key = key
    with server, browser.new_context(base_url=server.url) as context:
        page = context.new_page()
        sign_in(page, server, "/admin")
        expect(row(page, "operator")).to_contain_text("in SLUICE_KEYS")
        expect(row(page, "operator").get_by_role("button")).to_have_count(0)
        press(page, "New key")
        page.get_by_label("Name", exact=True).fill("ada")
        press(page, "Create key")
        expect(page.locator("#key-problem")).to_contain_text("./sluice keys show NAME --line")


def test_the_usage_of_all_has_each_grouping_and_csv_files(
    page: Page, server: Server, api: Api, fake: FakeProvider
) -> None:
    admin = server.key
    for name, count in (("ada", 2), ("bob", 1)):
        server.key = api("POST", KEYS, json={"name": name}).json()["key"]
        for _ in range(count):
            calls.complete(server, model="local/pydoc", max_tokens=5)
    server.key = admin
    sign_in(page, server, "/admin")
    page.locator("#measure").get_by_text("Requests").click()
    names = page.locator("#usage-table tbody th")
    expect(names.filter(has_text="ada")).to_be_visible()
    listed = names.all_inner_texts()
    assert listed.index("ada") < listed.index("bob")
    expect(page.locator("#chart canvas")).to_be_visible()
    page.get_by_label("Only the key").fill("ada")
    for by, text in (
        *(("model", "local/pydoc"), ("provider", "local"), ("endpoint", "/api/v1/completions")),
        *(("day", page.get_by_label("To", exact=True).input_value()), ("end reason", "completed")),
    ):
        page.get_by_label("By", exact=True).select_option(by)
        expect(names).to_have_text([text])
        expect(page.locator("#usage-table tbody td").first).to_have_text("2")
    with page.expect_download() as loaded:
        page.locator("#usage-csv").click()
    assert loaded.value.suggested_filename == "usage-of-all-by-end_reason.csv"
    assert len(Path(loaded.value.path()).read_text().splitlines()) == 2
    page.get_by_label("Only the key").fill("nobody")
    expect(page.locator("#only-error")).to_contain_text("There is no key")
    expect(page.get_by_label("Only the key")).to_be_focused()
    page.get_by_label("Only the key").fill("")
    page.get_by_label("From", exact=True).fill("2099-01-01")
    expect(page.locator("#from-error")).to_have_text("This day is after the last one.")
    page.get_by_label("To", exact=True).fill("2099-01-02")
    expect(page.locator("#from-error")).to_be_hidden()
    expect(page.locator("#usage-table")).to_contain_text("or give somebody a key")


def test_refused_calls_are_shown_by_key_and_reason(page: Page, server: Server) -> None:
    refuse(server)
    sign_in(page, server, "/admin")
    refused = page.locator("#refused-table tbody tr", has_text="thrifty")

    def counted() -> bool:
        with page.expect_response("**/api/v1/usage?*"):
            press(page, "Refresh")
        page.wait_for_timeout(100)
        return refused.count() > 0

    server.wait(counted)  # processes write the counts every few seconds
    expect(refused).to_contain_text("429: requests per minute")
    with page.expect_download() as loaded:
        page.locator("#refused-csv").click()
    assert '"thrifty","rate_limited","requests",1' in Path(loaded.value.path()).read_text()


def test_the_stream_of_another_key_is_listed_and_stopped(
    page: Page, server: Server, ordinary: str
) -> None:
    admin, server.key = server.key, ordinary
    with server.client() as client:
        calls.begin_stream(client, model="local/slow")
        server.key = admin
        sign_in(page, server, "/admin")
        rows = page.locator("#active-table tbody tr")
        expect(rows).to_have_count(1)
        expect(rows).to_contain_text("test")
        expect(rows).to_contain_text("answers")
        expect(page.locator("#sum-active")).to_have_text("1")
        rows.get_by_role("button").click()
        expect(page.locator("#no-active")).to_be_visible()
        expect(page.locator("#active-title")).to_be_focused()
        assert calls.kinds(list(client.frames()))[-3:] == ["finish", "usage_final", "DONE"]


def test_a_provider_that_fails_is_named_at_the_top_and_first_in_the_table(
    page: Page, server: Server, fake: FakeProvider
) -> None:
    for _ in range(2):
        fake.script(fp.error(500))
        with suppress(Exception):
            calls.complete(server, model="fakechat/m", max_tokens=5)
    sign_in(page, server, "/admin")
    expect(page.locator("#sum-providers")).to_contain_text("down")
    expect(page.locator("#sum-providers-hint")).to_contain_text("fakechat")
    found = page.locator("#provider-table tbody tr", has_text="fakechat")
    expect(found).to_contain_text("failing")
    expect(found).to_contain_text("500,")
    page.get_by_text("Not enabled").click()
    expect(page.locator("#missing-table")).to_contain_text("OPENAI_API_KEY")


def test_an_admin_key_that_is_disabled_meanwhile_gets_a_sentence(
    page: Page, server: Server, api: Api
) -> None:
    sign_in(page, server, "/admin")
    other = api("POST", KEYS, json={"name": "second", "admin": True})
    assert other.status_code == 201
    assert api("PATCH", f"{KEYS}/operator", json={"disabled": True}).status_code == 200
    expect(page.locator("#error")).to_contain_text("doesn\u2019t accept your key any more")


def test_a_colleagues_key_is_made_by_keyboard_only(page: Page, server: Server) -> None:
    sign_in(page, server, "/admin")
    expect(page.locator("#key-table tbody tr").first).to_be_visible()
    page.get_by_role("search").get_by_label("Group").focus()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="New key")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.type("ada")
    page.keyboard.press("Tab")
    page.keyboard.type("20")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Copy", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Done")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="New key")).to_be_focused()
    expect(row(page, "ada")).to_contain_text("of $20.00 a month")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="New key")).to_be_focused()


@pytest.mark.parametrize("theme", ["light", "dark"], indirect=True)
@pytest.mark.parametrize("width", ["narrow", "wide"], indirect=True)
def test_the_page_and_its_dialogs_have_no_axe_violations_and_fit_the_screen(
    page: Page, server: Server, api: Api, fake: FakeProvider
) -> None:
    api("POST", KEYS, json={"name": "a-name-" + "x" * 80, "budget_usd": 0.000000001})
    api("POST", KEYS, json={"name": "ada", "models": ["openai/" + "y" * 90, "fast"]})
    api("PATCH", f"{KEYS}/ada", json={"disabled": True, "tier": "standard"})
    slow(fake)
    found = {}
    sign_in(page, server, "/admin")
    with server.client() as client:
        calls.begin_stream(client, model="fake/m")
        expect(page.locator("#active-table tbody tr")).to_have_count(1)
        expect(page.locator("#chart canvas")).to_be_visible()
        page.get_by_text("Not enabled").click()
        found["page"] = violations(page)
        assert fits(page)
        for name in ("New key", "Change ada", "Rotate ada", "Delete ada"):
            press(page, name)
            if name == "New key":
                page.get_by_text("More limits").click()
                press(page, "Create key")
                expect(page.get_by_text("Give the key a name.")).to_be_visible()
            if name == "Change ada":
                page.get_by_text("Last changes").click()
                expect(page.locator("#key-log li")).to_have_count(2)
            found[name] = violations(page)
            assert fits(page)
            page.keyboard.press("Escape")
        press(page, "Rotate ada")
        api("PATCH", f"{KEYS}/ada", json={"budget_usd": 3})
        press(page, "Rotate key")
        expect(page.locator("#rotate-changed")).to_contain_text("Somebody else")
        found["conflict"] = violations(page)
        assert fits(page)
        press(page, "Rotate anyway")
        expect(page.locator("#secret")).to_contain_text("sk-sluice-")
        found["secret"] = violations(page)
        assert fits(page)
    assert found == {name: [] for name in found}
