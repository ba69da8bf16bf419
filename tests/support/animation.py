"""The animated picture of the README, docs/screenshots/stop.gif.

Make it with `python -m tests.support.animation docs/screenshots/stop.gif`. It records the real
playground of a real server, in real time: a prompt is typed, `local/slow` streams, and Stop ends
it. The pointer is drawn into the page, because screenshots don't have one.
"""

from __future__ import annotations

import io
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Final

from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

from tests.support.browsers import launch
from tests.support.pages import sign_in
from tests.support.servers import UNTROUBLED, Server

SIZE: Final = {"width": 960, "height": 620}
MOST_BYTES: Final = 1_000_000
PROMPT: Final = "The best way to open a file is"
STREAMED_S: Final = 5.0
LAST_MS: Final = 4000
COLORS: Final = 128
POINTER: Final = """() => {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const path = document.createElementNS(space, "path");
  svg.id = "pointer";
  svg.setAttribute("viewBox", "0 0 20 28");
  path.setAttribute("d", "M2 1v20l5-4 4 9 4-2-4-9h7z");
  path.setAttribute("fill", "#111");
  path.setAttribute("stroke", "#fff");
  path.setAttribute("stroke-width", "1.6");
  svg.append(path);
  Object.assign(svg.style, {position: "fixed", width: "17px", zIndex: 99, pointerEvents: "none"});
  document.body.append(svg);
  document.addEventListener("mousemove", ({clientX, clientY}) =>
    Object.assign(svg.style, {left: `${clientX}px`, top: `${clientY}px`}));
}"""


class Film:
    """Screenshots of a page, and the time that each was visible."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._frames: list[tuple[float, bytes]] = []

    def shoot(self) -> None:
        self._frames.append((time.monotonic(), self._page.screenshot()))

    def shoot_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.shoot()
            self._page.wait_for_timeout(60)

    def write(self, path: Path) -> None:
        times = [at for at, _ in self._frames]
        shown = [1000 * (b - a) for a, b in pairwise(times)] + [LAST_MS]
        images = [Image.open(io.BytesIO(data)).convert("RGB") for _, data in self._frames]
        # One palette for all frames, so that unchanged areas stay equal and cost nothing.
        width, height = images[-1].size
        both = Image.new("RGB", (width, 2 * height))
        both.paste(images[len(images) // 2], (0, 0))  # Stop is red only in the middle
        both.paste(images[-1], (0, height))
        palette = both.quantize(COLORS, dither=Image.Dither.NONE)
        first, *rest = [
            image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images
        ]
        first.save(
            path,
            save_all=True,
            append_images=rest,
            duration=[max(20, round(each, -1)) for each in shown],
            loop=0,
            optimize=True,
        )


def move(page: Page, film: Film, to: Locator) -> None:
    box = to.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2, steps=6)
    film.shoot_for(0.4)


def record(page: Page) -> Film:
    film = Film(page)
    prompt = page.get_by_label("Prompt", exact=True)
    run, halt = (page.get_by_role("button", name=name) for name in ("Run", "Stop"))
    prompt.fill("")
    page.evaluate(POINTER)
    page.mouse.move(700, 500)
    move(page, film, prompt)
    prompt.click()
    for letter in PROMPT:
        page.keyboard.type(letter)
        film.shoot()
    move(page, film, run)
    run.click()
    film.shoot_for(STREAMED_S)
    move(page, film, halt)
    halt.click()
    expect(page.locator("#ending")).to_contain_text("Stopped · ")
    film.shoot_for(0.3)
    return film


def main(path: Path) -> None:
    with sync_playwright() as playwright, Server(env=UNTROUBLED) as server:
        browser = launch(playwright)
        page = browser.new_page(base_url=server.url, viewport=SIZE)  # type: ignore[arg-type]
        sign_in(page, server)
        record(page).write(path)
        browser.close()
    size = path.stat().st_size
    print(f"{path}: {size:,} bytes")
    if size > MOST_BYTES:
        sys.exit(f"{path} has more than {MOST_BYTES:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
