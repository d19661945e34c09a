"""Takes docs/page.png: the page at `/` on the built-in model, with something going on.

    python tools/page_screenshot.py [OUT.png] [--dark]

Needs Chromium, and trimtab installed with its test extra.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "server"))

import chromium  # noqa: E402
from live import Live, end, start  # noqa: E402

QUESTIONS = ("What does os.umask do?", "What is 12 + 7?", "What does random.shuffle do?")
NUM_OTHERS = 3  # clients that keep the dashboard busy
PROMPTS = ("def quicksort(a):\n", "import os\n\n", "class Queue:\n    ")
TOKEN = ".turn:nth-child(6) .shade-1:not(:first-child)"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "docs" / "page.png")
    parser.add_argument("--dark", action="store_true")
    given = parser.parse_args()
    if chromium.find() is None:
        print("page_screenshot: there is no Chromium on this machine", file=sys.stderr)
        return 2
    server = start([sys.executable, "-m", "trimtab", "serve", "builtin", "--port", "0", "--json"])
    over = threading.Event()
    others = [threading.Thread(target=keep_busy, args=(server, i, over)) for i in range(NUM_OTHERS)]
    try:
        for thread in others:
            thread.start()
        with chromium.browse() as page:
            given.out.write_bytes(picture(page, server.url, given.dark))
            if page.problems:
                print("\n".join(page.problems), file=sys.stderr)
                return 1
    finally:
        over.set()
        for thread in others:
            thread.join()
        end(server)
    print(f"{given.out}: {given.out.stat().st_size} bytes")
    return 0


def picture(page: chromium.Page, url: str, dark: bool) -> bytes:
    page.emulate(dark=dark)
    page.open(url + "/")
    page.wait("document.querySelector('#model').textContent === 'builtin'")
    for selector, value in (("#temperature", "0"), ("#max-tokens", "80")):
        page.evaluate(f"document.querySelector('{selector}').value = '{value}'")
    for question in QUESTIONS:
        page.click("#message")
        page.type(question)
        page.press("Enter")
        page.wait("document.querySelector('.turn.assistant:last-child small')?.textContent !== ''")
    readings = "performance.getEntriesByName(new URL('dashboard.json', location).href).length"
    page.wait(f"{readings} >= 50")  # most of a sparkline
    page.hover(TOKEN)
    page.wait("!document.querySelector('#details').hidden")
    return page.screenshot()


def keep_busy(server: Live, number: int, over: threading.Event) -> None:
    turn = 0
    while not over.is_set():
        body = {
            "prompt": PROMPTS[turn % len(PROMPTS)] * (1 + turn % 4),
            "max_tokens": 160,
            "seed": number,
        }
        server.post("/v1/completions", content=json.dumps(body))
        turn += 1
        over.wait(0.3 + (turn + number) % 5 / 2)


if __name__ == "__main__":
    sys.exit(main())
