"""The page at `/` in a headless Chromium, with real keys and a real mouse, on the fake engine."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import chromium
import pytest
from chromium import Page
from live import Live, live_server, wait_until

pytestmark = pytest.mark.skipif(chromium.find() is None, reason="there is no Chromium")

HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
DONE = "document.querySelector('.turn.assistant:last-child footer small')?.textContent"


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium.browse() as page:
        yield page


@pytest.fixture
def page(browser: Page, server: Live) -> Iterator[Page]:
    """The page, just opened; behind the test nothing may have gone wrong that the test does not
    forgive, nor any request have gone elsewhere."""
    yield from opened(browser, server)


def opened(browser: Page, server: Live) -> Iterator[Page]:
    browser.open("about:blank")
    browser.problems, browser.requested, browser.posted = [], [], []
    browser.emulate()
    browser.open(server.url + "/")
    yield browser
    browser.evaluate("1")
    assert browser.problems == []
    assert browser.requested
    assert all(url.startswith(server.url + "/") for url in browser.requested)


def ask(page: Page, text: str) -> None:
    page.click("#message")
    page.type(text)
    page.press("Enter")


def answer(page: Page, text: str, ending: str = "stop") -> str:
    """Asks, and gives the text of the answer, once it has ended."""
    ask(page, text)
    page.wait(f"{DONE}?.startsWith('{ending} ·')")
    return str(page.evaluate("document.querySelector('.turn:last-child .content').textContent"))


def set_field(page: Page, selector: str, value: str) -> None:
    page.evaluate("document.querySelector('#settings').open = true")
    page.click(selector)
    page.evaluate(f"document.querySelector({json.dumps(selector)}).select()")
    page.type(value)
    page.evaluate("document.querySelector('#settings').open = false")


def test_a_conversation(page: Page) -> None:
    page.wait("document.querySelector('#model').textContent === 'fake-model'")
    set_field(page, "#system", "be brief")
    for selector, value in (("#temperature", "0.5"), ("#top-p", "0.9"), ("#seed", "7")):
        set_field(page, selector, value)
    first = answer(page, "SAY[one\n  two]YAS")
    assert first == "one\n  two"
    set_field(page, "#max-tokens", "5")
    second = answer(page, "and then?", "length")
    assert len(second) == 5
    assert page.posted[0]["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "SAY[one\n  two]YAS"},
    ]
    sent = page.posted[1]
    assert sent["messages"][2:] == [
        {"role": "assistant", "content": first},
        {"role": "user", "content": "and then?"},
    ]
    assert (sent["temperature"], sent["top_p"], sent["seed"]) == (0.5, 0.9, 7)
    assert (sent["max_tokens"], sent["model"]) == (5, "fake-model")
    page.click("#new-chat")
    assert page.evaluate("document.querySelectorAll('.turn').length") == 0


def test_alternatives_with_the_mouse_and_the_keyboard(page: Page) -> None:
    answer(page, "SAY[hello]YAS")
    assert page.evaluate("document.querySelectorAll('.token').length") == 5
    assert page.evaluate("document.querySelector('#details').hidden")
    page.hover(".token:nth-of-type(2)")
    shown = page.text("#details")
    assert shown.startswith("e 60.7 %")  # exp(-0.5), what the fake engine gives each token
    assert "36.8 %" in shown  # exp(-1), its first alternative
    page.click("#message")
    assert page.evaluate("document.querySelector('#details').hidden")
    # The conversation scrolls, so it is a stop of its own before its tokens.
    page.evaluate("document.querySelector('#turns').focus()")
    page.press("Tab")
    assert page.text("#details").startswith("h ")
    page.press("ArrowRight")
    page.press("ArrowRight")
    page.press("ArrowLeft")
    assert page.text("#details").startswith("e ")
    assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "details"
    page.press("End")
    assert page.text("#details").startswith("o ")
    page.press("Escape")
    assert page.evaluate("document.querySelector('#details').hidden")


def test_characters_that_several_tokens_make(page: Page) -> None:
    set_field(page, "#max-tokens", "12")
    assert answer(page, "UTF8", "length") == "é🙂é🙂"
    tokens = "[...document.querySelectorAll('.token')].map(token => token.textContent)"
    assert page.evaluate(tokens) == ["é", "🙂", "é", "🙂"]
    page.hover(".token:nth-of-type(2)")
    assert page.text("#details").count("logprob") == 4


def test_without_probabilities(page: Page) -> None:
    page.evaluate("document.querySelector('#settings').open = true")
    page.click("#probabilities")
    assert answer(page, "SAY[plain]YAS") == "plain"
    assert page.evaluate("document.querySelectorAll('.token').length") == 0
    assert "logprobs" not in page.posted[0]


def test_the_timeline_of_a_request(page: Page) -> None:
    answer(page, "SAY[hello]YAS")
    shown = page.text("#timeline")
    for word in ("read", "tokenize", "queue", "prefill", "decode", "first token out", "5 tok"):
        assert word in shown
    titles = page.evaluate(
        "[...document.querySelectorAll('#timeline title')].map(t => t.textContent)"
    )
    assert "chunk 1: 2 tokens, 1.5 ms" in titles  # as the fake engine says
    assert "waiting, 0.5 ms" in titles
    assert page.evaluate("document.querySelector('#timeline svg').getAttribute('aria-label')")


def test_the_dashboard_lives_while_it_is_seen(page: Page) -> None:
    answer(page, "SAY[hello]YAS")
    readings = "[...document.querySelectorAll('.card')].map(card => card.innerText)"
    page.wait(f"!{readings}[2]?.includes('–')")
    cards = page.evaluate(readings)
    assert [card.splitlines()[0] for card in cards] == [
        "Generated tokens/s",
        "Prompt tokens/s",
        "Time to first token",
        "Inter-token latency",
        "Batch: running requests",
        "Queue: waiting requests",
        "KV cache blocks",
    ]
    assert re.search(r"p50 \d.* ms\s+p95 \d.* ms", cards[2])
    assert re.search(r"p50 \d.* ms\s+p95 \d.* ms", cards[3])
    assert re.search(r"requests\s+0\s+rows a step", cards[4])
    assert re.search(r"requests\s+0 / 512", cards[5])
    assert re.search(r"used \d+\s+cached \d+\s+free \d+", cards[6])
    page.wait(f"parseFloat({readings}[0].split('\\n')[2] ?? {readings}[0].split('\\n')[1]) > 0")
    polled = "performance.getEntriesByName(new URL('dashboard.json', location).href).length"
    page.wait(f"{polled} > 2")
    page.emulate(width=360, height=640)  # the narrow page shows the chat alone
    page.wait("document.querySelector('#dashboard').getClientRects().length === 0")
    before = page.evaluate(polled)
    time.sleep(2.5)
    assert page.evaluate(polled) <= before + 1  # one may have been on its way
    page.click("#show-insight")
    page.wait(f"{polled} > {before + 1}")


def test_text_is_never_markup(page: Page) -> None:
    assert answer(page, f"SAY[{HOSTILE}]YAS") == HOSTILE
    page.hover(".token")
    set_field(page, "#more", json.dumps({"model": HOSTILE}))
    ask(page, HOSTILE)
    page.wait("document.querySelector('.error:not(:empty)')?.textContent.includes('<img src=x')")
    page.forgive("status of 404")
    assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0
    assert page.evaluate("document.title") == "fake-model – trimtab"


def test_the_policy_refuses_what_the_page_never_does(page: Page) -> None:
    """Markup that ran would be seen above; and behind the page the browser holds the line."""
    with pytest.raises(RuntimeError, match="TrustedHTML"):
        page.evaluate("document.querySelector('#turns').innerHTML = '<b>x</b>'")
    page.evaluate("document.body.append(document.createElement('img'))")
    page.evaluate("document.body.lastChild.src = 'http://127.0.0.2:9/x.png'")
    page.wait("true")
    wait_until(lambda: page.evaluate("1") == 1 and len(page.problems) >= 2)
    page.forgive("TrustedHTML")
    page.forgive("127.0.0.2")
    page.requested = [url for url in page.requested if "127.0.0.2" not in url]


def test_code_between_fences(page: Page) -> None:
    text = "before\n```python\nx = 1\n    y\n```\nafter `code` ``` no fence"
    assert answer(page, f"SAY[{text}]YAS") == text
    blocks = "[...document.querySelectorAll('.turn:last-child .content > *')]"
    shown = page.evaluate(f"{blocks}.map(block => [block.tagName, block.textContent])")
    assert shown == [
        ["DIV", "before\n"],
        ["PRE", "```python\nx = 1\n    y\n```\n"],
        ["DIV", "after `code` ``` no fence"],
    ]
    # The question had no newline behind its last fence, and the rest of its text on one line.
    assert page.evaluate("document.querySelectorAll('.turn.user pre').length") == 1


def test_stop_then_try_again_then_edit(page: Page, server: Live) -> None:
    ask(page, "SLOW please")
    page.wait("document.querySelectorAll('.token').length > 2")
    assert page.evaluate("document.querySelector('#turns').getAttribute('aria-busy')") == "true"
    page.click("#stop")
    page.wait(f"{DONE} === 'stopped'")
    assert page.evaluate("document.querySelector('#turns').getAttribute('aria-busy')") == "false"
    wait_until(lambda: server.get("/stats").json()["num_running"] == 0)
    set_field(page, "#max-tokens", "3")
    page.click(".turn:last-child footer button:last-child")
    page.wait(f"{DONE}?.startsWith('length')")
    assert page.posted[1]["messages"] == page.posted[0]["messages"]
    page.click(".turn:last-child footer button:first-of-type")
    assert page.evaluate("document.querySelectorAll('.turn').length") == 0
    assert page.evaluate("document.querySelector('#message').value") == "SLOW please"
    assert page.evaluate("document.activeElement.id") == "message"


def test_errors_in_the_words_of_the_api(page: Page, server: Live) -> None:
    set_field(page, "#more", '{"top_k": -7}')
    ask(page, "hello")
    shown = page.wait("document.querySelector('.error')?.textContent")
    refused = server.post("/v1/chat/completions", json=page.posted[0])
    assert refused.status_code == 400
    assert shown == f"{refused.json()['error']['message']} (400, top_k)"
    page.forgive("status of 400")

    set_field(page, "#more", "{")
    page.click("#new-chat")
    ask(page, "hello")
    assert "not valid JSON" in page.text("#notice")
    assert page.evaluate("document.querySelector('#message').value") == "hello"
    assert len(page.posted) == 1


def test_an_error_in_the_middle_of_a_stream(page: Page) -> None:
    ask(page, "BROKEN")
    shown = page.wait("document.querySelector('.error')?.textContent")
    assert "the model's logits were not finite" in shown
    assert "generation_failed" in shown
    assert (
        len(page.evaluate("document.querySelector('.turn:last-child .content').textContent")) == 2
    )


def test_a_model_without_a_chat_template(browser: Page) -> None:
    with live_server(model="no-template") as server:
        for page in opened(browser, server):
            ask(page, "SAY[ it goes on]YAS")
            page.wait(f"{DONE}?.startsWith('stop ·')")
            assert "no chat template" in page.text("#notice")
            assert page.posted[-1]["prompt"] == "SAY[ it goes on]YAS"
            page.hover(".token:nth-of-type(2)")
            assert page.text("#details").startswith("i ")
            answer(page, "SAY[more]YAS")
            assert page.posted[-1]["prompt"] == "SAY[ it goes on]YAS it goes onSAY[more]YAS"
            page.forgive("status of 400")


def test_a_key(browser: Page) -> None:
    with live_server(server={"api_key": "s3cret"}) as server:
        for page in opened(browser, server):
            page.wait("document.querySelector('#key-dialog').open")
            page.click("#key")
            page.type("wrong")
            page.press("Enter")
            page.wait("document.querySelector('#key-message').textContent !== ''")
            page.click("#key")
            page.type("s3cret")
            page.press("Enter")
            page.wait("document.querySelector('#model').textContent === 'fake-model'")
            assert answer(page, "SAY[welcome]YAS") == "welcome"
            assert page.evaluate("Object.values(sessionStorage)") == ["s3cret"]
            assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
            assert not any("s3cret" in url for url in page.requested)
            page.open(server.url + "/?again")
            page.wait("document.querySelector('#model').textContent === 'fake-model'")
            page.evaluate("sessionStorage.clear()")
            page.forgive("status of 401")


def test_reasoning_is_folded_and_tool_calls_are_answered(browser: Page) -> None:
    call = '<tool_call>{"name": "look", "arguments": {"at": "<b>%s</b>"}}</tool_call>'
    said = f"<think>{HOSTILE} why</think>I look.{call % 1}\n{call % 2}"
    parsers = {"tool_parser": "hermes", "reasoning_parser": "think"}
    with live_server(model="tools", server=parsers) as server:
        for page in opened(browser, server):
            tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
            set_field(page, "#more", json.dumps({"tools": [tool]}))
            assert answer(page, f"SAY[{said}]YAS", "tool_calls").strip() == "I look."
            thought = "document.querySelector('.reasoning')"
            assert page.evaluate(f"[{thought}.open, {thought}.hidden]") == [False, False]
            page.click(".reasoning summary")
            assert page.text(".reasoning .text") == f"{HOSTILE} why"
            assert (
                page.evaluate("document.querySelectorAll('#turns :is(img, script, b)').length") == 0
            )
            shown = page.evaluate("[...document.querySelectorAll('.call')].map(c => c.textContent)")
            calls = [json.loads(text) for text in shown]
            assert [one["name"] for one in calls] == ["look", "look"]
            assert [one["arguments"] for one in calls] == [{"at": "<b>1</b>"}, {"at": "<b>2</b>"}]

            ask(page, "first result")
            assert page.text("#message-label") == "Result of look"
            assert len(page.posted) == 1
            assert answer(page, "SAY[thanks]YAS") == "thanks"
            assert page.text("#message-label") == "Message"
            messages = page.posted[1]["messages"]
            assert [message["role"] for message in messages] == [
                "user",
                "assistant",
                "tool",
                "tool",
            ]
            assert [message.get("tool_call_id") for message in messages[2:]] == [
                one["id"] for one in calls
            ]
            assert [one["id"] for one in messages[1]["tool_calls"]] == [one["id"] for one in calls]
            page.click(".turn:last-child footer button:first-of-type")  # edit the second result
            assert page.text("#message-label") == "Result of look"
            assert page.evaluate("document.querySelector('#message').value") == "SAY[thanks]YAS"


def test_every_control_has_a_name(page: Page) -> None:
    answer(page, "SAY[hello]YAS")
    page.evaluate("document.querySelector('#settings').open = true")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    controls = {"button", "textbox", "checkbox", "combobox", "spinbutton", "log", "image"}
    named = [
        (node["role"]["value"], node["name"]["value"])
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in controls
    ]
    assert len(named) > 10
    assert [role for role, name in named if not name] == []


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone(page: Page, dark: bool) -> None:
    page.emulate(dark=dark, width=360, height=640)
    text = "a long line " * 20 + "\n```\n" + "code " * 60 + "\n```\n"
    answer(page, f"SAY[{text}]YAS")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.hover(".token:nth-of-type(20)")
    box = page.evaluate(
        "(() => { const {left, right} = document.querySelector('#details').getBoundingClientRect();"
        " return [left, right]; })()"
    )
    assert 0 <= box[0] < box[1] <= 360
    page.click("#show-insight")
    assert "prefill" in page.text("#timeline")
    assert page.evaluate("document.querySelector('#message').getClientRects().length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 24, 26)" if dark else "rgb(246, 247, 247)")
