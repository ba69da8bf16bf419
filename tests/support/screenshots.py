"""Screenshots of the pages for the docs: `python -m tests.support.screenshots docs/screenshots`.

They show a test server with made-up usage and fake providers.
"""

from __future__ import annotations

import json
import random
import re
import secrets
import sqlite3
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support import fake as fp
from tests.support.browsers import launch
from tests.support.fake import FakeProvider
from tests.support.pages import choose, run, send, sign_in
from tests.support.servers import UNTROUBLED, Server

THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
WIDTHS = (1280, 390)
MODEL = "openai/gpt-4o-mini"
USED = {  # relative frequency, and nano-dollars per input and output token
    "openai/gpt-4o-mini": (5, 150, 600),
    "anthropic/claude-sonnet-4-5": (2, 3000, 15000),
    "mistral/mistral-small-latest": (2, 100, 300),
    "local/pydoc": (1, 0, 0),
}
ENDS = (
    *(("completed", 200, None),) * 14,
    *(("stopped", 200, None),) * 3,
    ("provider_error", 502, "provider_error"),
)
GROUPS = """
[groups.research]
budget_usd = 50
budget_period = "month"

[groups.interns]
requests_per_minute = 20
models = ["openai/gpt-4o-mini", "local/*"]
"""
TEAM: tuple[tuple[str, int, dict[str, object]], ...] = (  # name, calls a day, and terms
    ("ada", 90, {"budget_usd": 20, "budget_period": "month", "group": "research"}),
    ("ben", 60, {"budget_usd": 5, "budget_period": "month", "group": "research"}),
    ("nightly-tests", 30, {"tier": "standard", "models": ["openai/gpt-4o-mini"]}),
    ("old-laptop", 2, {"disabled": True}),
)
REFUSED = (
    ("ben", "insufficient_credits:budget", 14),
    ("nightly-tests", "rate_limited:requests", 212),
)
PROMPT = "The keeper of the lock walked down to the water before dawn, because"
TEXT = (
    " the river had risen in the night and the lower gate was singing.\n\nShe set her hand on the "
    "wheel, counted the turns her father had taught her, and let the water through a little at a "
    "time. Nobody upstream would know how close it had come; nobody downstream would know that it "
    "had come at all. That, she thought, was the whole of the work: to stand between the two, and "
    "to be able to stop it.\n\nWhen the barges came at six"
)
CODE = """Use a `with` statement, which closes the file by itself:

```python
with open("notes.txt", encoding="utf-8") as file:
    for line in file:
        print(line.rstrip())
```

- It closes the file **even after an error**.
- Always name the *encoding*.
"""
FOLLOWING = (
    "Read what is there, then wait for more: `readline()` returns an empty string at the end of "
    "the file, and the new lines at the next call."
)


def moments(now: datetime) -> Iterator[datetime]:
    """Yield the times of calls in the last 25 days. There are fewer on weekends."""
    for days in range(24, -1, -1):
        day = now - timedelta(days=days)
        for _ in range(random.randint(12, 42) // (5 if day.weekday() > 4 else 1)):
            yield day - timedelta(seconds=random.randint(300, 30_000))


def use(server: Server) -> None:
    random.seed(9)
    names = [name for name, (share, _, _) in USED.items() for _ in range(share)]
    with sqlite3.connect(server.directory / "sluice.db") as db:
        (key_id,) = db.execute("SELECT key_id FROM requests LIMIT 1").fetchone()
        for began in sorted(moments(datetime.now(UTC))):
            name = random.choice(names)
            provider, model = name.split("/", 1)
            reason, status, code = random.choice(ENDS)
            counts = random.randint(40, 2200), random.randint(20, 900)
            cost = counts[0] * USED[name][1] + counts[1] * USED[name][2]
            started, took = int(began.timestamp() * 1e6), random.randint(300_000, 9_000_000)
            row = {
                "id": f"{started:015x}"[-15:] + secrets.token_hex(8)[:15],
                "owner": "none",
                "request_id": str(uuid.uuid4()),
                "stream_id": str(uuid.uuid4()),
                "key_id": key_id,
                "endpoint": "/api/v1/completions",
                "provider": provider,
                "model": model,
                "streamed": True,
                "byok": False,
                "started_us": started,
                "reserved_nano": 0,
                "ended_us": started + took,
                "status": status,
                "end_reason": reason,
                "error_code": code,
                "input_tokens": counts[0],
                "output_tokens": counts[1],
                "cache_read_tokens": 0,
                "cache_write_tokens": 0,
                "reasoning_tokens": 0,
                "usage_source": "provider",
                "cost_nano": cost,
                "attempts": 1,
                "duration_us": took,
                "latency_us": took,
                "first_event_us": took // 6,
            }
            insert(db, "requests", row)
            daily = {name: row[name] for name in ("key_id", "provider", "model", "endpoint")}
            daily |= {"day": began.date().isoformat(), "requests": 1, "unpriced": 0}
            daily |= {"input_tokens": counts[0], "output_tokens": counts[1], "cost_nano": cost}
            insert(db, "daily", daily)


def team(server: Server) -> None:
    """Add keys with limits and budgets, and what they have used."""
    today = datetime.now(UTC).date()
    with sqlite3.connect(server.directory / "sluice.db") as db:
        for name, calls, fields in TEAM:
            server.add_key(name, id=f"key_{name}00000000"[:16], **fields)
            for days in range(25):
                day = (today - timedelta(days=days)).isoformat()
                count = random.randint(calls // 2, calls)
                row = {"key_id": f"key_{name}00000000"[:16], "day": day, "requests": count}
                row |= {"provider": "openai", "model": MODEL.partition("/")[2], "unpriced": 0}
                row |= {"endpoint": "/v1/completions", "input_tokens": 900 * count}
                row |= {"output_tokens": 420 * count, "cost_nano": 3_870_000 * count}
                insert(db, "daily", row)
                if group := fields.get("group"):
                    insert(db, "group_daily", row | {"group_name": group})
        for name, reason, count in REFUSED:
            row = {"key_id": f"key_{name}00000000"[:16], "day": today.isoformat()}
            insert(db, "refusals", row | {"reason": reason, "calls": count})


def insert(db: sqlite3.Connection, table: str, row: dict[str, object]) -> None:
    known = [info[1] for info in db.execute(f"PRAGMA table_info({table})")]
    names = [name for name in known if name in row]
    more = ""
    if table.endswith("daily"):
        sums = ("requests", "input_tokens", "output_tokens", "cost_nano")
        more = " ON CONFLICT DO UPDATE SET " + ", ".join(f"{n} = {n} + excluded.{n}" for n in sums)
    places = ", ".join("?" * len(names))
    text = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({places}){more}"
    db.execute(text, [row[name] for name in names])


def ask(page: Page, fake: FakeProvider) -> None:
    """Run a stream in the playground, and wait until the whole text is visible."""
    pieces = [piece + " " for piece in TEXT.split(" ")]
    frames = fp.chunks(pieces, chat=True, finish=None)
    fake.script([*fp.sse(frames, interval=0.012, done=False, complete=False), fp.hold()])
    choose(page, MODEL)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_text("Parameters").click()
    page.get_by_label("Temperature").fill("0.8")
    page.get_by_label("Max tokens").fill("400")
    run(page)
    expect(page.locator("#output")).to_contain_text("barges came at six")


def compare(page: Page, fake: FakeProvider) -> None:
    """Run a prompt side by side, and stop one of the two answers."""
    page.set_viewport_size({"width": 1280, "height": 1080})
    page.get_by_role("button", name="Compare with a second model").click()
    choose(page, "local/slow", "Second model")
    page.get_by_label("Prompt", exact=True).fill("The best way to open a file is")
    pieces = [CODE[at : at + 6] for at in range(0, len(CODE), 6)]
    frames = fp.chunks(pieces, chat=True, usage=(8, 74))
    fake.script(fp.sse(frames, interval=0.03))
    run(page)
    expect(page.locator("#live-tokens-2")).to_have_text(re.compile("≈ [3-9][0-9]"))
    page.get_by_role("button", name="Stop local/slow").click()
    for suffix in ("", "-2"):
        expect(page.locator(f"#ending{suffix}")).to_contain_text("took")


def talk(page: Page, fake: FakeProvider) -> None:
    """Hold a conversation of two answers. The second has reasoning and still arrives."""
    page.get_by_role("tab", name="Chat").click()
    choose(page, MODEL)
    page.get_by_text("Parameters").click()
    page.get_by_label("System prompt").fill("Answer briefly, for people who know Python.")
    frames = fp.chunks([CODE], chat=True, usage=(38, 74))
    fake.script(fp.sse(frames))
    send(page, "How do I read a file line by line?")
    expect(page.locator("#ending-chat")).to_contain_text("Finished")
    [thought] = fp.chunks([""], chat=True, finish=None)
    thought["choices"][0]["delta"] = {"reasoning_content": "They ask about a file that grows."}
    pieces = [f"{piece} " for piece in FOLLOWING.split(" ")]
    frames = [thought, *fp.chunks(pieces, chat=True, finish=None)]
    fake.script([*fp.sse(frames, interval=0.03, done=False, complete=False), fp.hold()])
    send(page, "And if another program still writes to it?")
    expect(page.locator("#output-chat")).to_contain_text("next call.")


def show(page: Page, width: int) -> None:
    """Scroll to the answer on a narrow screen, and to the top with the buttons on a wide one."""
    if width < 800:
        page.locator(".answer").evaluate("(answer) => answer.scrollIntoView()")
    else:
        page.evaluate("scrollTo(0, 0)")
        page.locator("#act").evaluate("(act) => act.scrollIntoView({ block: 'nearest' })")


def shoot(browser: Browser, server: Server, fake: FakeProvider, directory: Path) -> None:
    for theme in THEMES:
        for width in WIDTHS:
            size = {"width": width, "height": 900 if width > 800 else 844}
            context = browser.new_context(
                base_url=server.url,
                viewport=size,  # type: ignore[arg-type]
                color_scheme=theme,
            )
            page = context.new_page()
            sign_in(page, server)
            ask(page, fake)
            show(page, width)
            page.screenshot(path=directory / f"playground-{theme}-{width}.png")
            usage = context.new_page()
            sign_in(usage, server, "/usage")
            expect(usage.locator("#active tbody tr")).to_have_count(1)
            expect(usage.locator("#latest tbody tr")).to_have_count(20)
            usage.wait_for_timeout(300)
            usage.screenshot(path=directory / f"usage-{theme}-{width}.png")
            admin = context.new_page()
            sign_in(admin, server, "/admin")
            expect(admin.locator("#active-table tbody tr")).to_have_count(1)
            expect(admin.locator("#usage-table tbody tr")).to_have_count(len(TEAM) + 1)
            admin.wait_for_timeout(300)
            admin.screenshot(path=directory / f"admin-{theme}-{width}.png")
            if "--full" in sys.argv:
                usage.screenshot(path=directory / f"full-{theme}-{width}.png", full_page=True)
                admin.screenshot(path=directory / f"full-admin-{theme}-{width}.png", full_page=True)
            page.keyboard.press("Escape")
            expect(page.locator("#ending")).to_contain_text("Stopped")
            talk(page, fake)
            show(page, width)
            page.screenshot(path=directory / f"chat-{theme}-{width}.png")
            page.keyboard.press("Escape")
            expect(page.locator("#ending-chat")).to_contain_text("Stopped")
            page.get_by_role("tab", name="Completion").click()
            if width > 800:
                compare(page, fake)
                page.screenshot(path=directory / f"compare-{theme}-{width}.png")
                page.set_viewport_size(size)  # type: ignore[arg-type]
                page.goto("/docs")
                page.locator("#nativeCompletion > summary").click()
                page.screenshot(path=directory / f"api-{theme}-{width}.png")
            context.close()


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with FakeProvider.start() as fake, sync_playwright() as playwright:
        rows = f'[providers.openai]\nbase_url = "{fake.base_url}"\n{GROUPS}'
        env = UNTROUBLED | {"OPENAI_API_KEY": "none-needed"}
        server = Server(rows, env=env)
        keys = server.directory / "keys.jsonl"
        first = json.loads(keys.read_text()) | {"name": "operator", "admin": True}
        keys.write_text(json.dumps(first) + "\n")
        with server:
            body = {"prompt": "Hello", "model": "local/pydoc", "max_tokens": 5}
            with server.client() as client:
                client.request("POST", "/api/v1/completions", body)
                client.read_head()
                client.json()
            use(server)
            team(server)
            browser = launch(playwright)
            shoot(browser, server, fake, directory)
            browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
