"""Whatever a request says, the process opens no file, no connection and no other process for it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import fake_engine
import httpx
import pytest

from trimtab.config import SchedulerConfig, ServerConfig
from trimtab.engine.client import EngineRequest, TokenOutput
from trimtab.server.app import ApiServer
from trimtab.server.text import ServedModel

PATHS = [
    "/etc/passwd",
    "file:///etc/passwd",
    "../../../../etc/passwd",
    "http://127.0.0.1:1/x",
    "\\\\host\\share",
    "data:text/plain;base64,aGk=",
    "C:\\x",
    "~/.ssh/id_rsa",
]
WATCHED = (
    "open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir", "os.symlink",
    "os.system", "subprocess.Popen", "socket.connect", "socket.getaddrinfo", "socket.sendto",
    "urllib.Request", "shutil.copyfile", "import", "ctypes.dlopen",
)  # fmt: skip

_seen: list[tuple[str, Any]] | None = None


def _hook(event: str, arguments: Any) -> None:
    if _seen is not None and event in WATCHED:
        _seen.append((event, arguments))


sys.addaudithook(_hook)  # for the life of this process, idle outside of `watching`


@contextmanager
def watching() -> Iterator[list[tuple[str, Any]]]:
    global _seen
    _seen = []
    try:
        yield _seen
    finally:
        _seen = None


class Engine(fake_engine.FakeEngine):
    """In this process."""

    state = "ready"
    healthy = True
    num_restarts = 0

    def submit(
        self, request: EngineRequest, sink: Callable[[TokenOutput | Exception], None]
    ) -> Callable[[], object]:
        async def run() -> None:
            try:
                async for output in self.generate(request):
                    sink(output)
            except Exception as error:
                sink(error)

        return asyncio.ensure_future(run()).cancel


def bodies(value: str) -> Iterator[tuple[str, dict[str, Any]]]:
    texts = [value, [{"type": "text", "text": value}]]
    for content in texts:
        yield "/v1/chat/completions", {"messages": [{"role": "user", "content": content}]}
    for kind in ("image_url", "input_audio", "file", "video_url"):
        part = {"type": kind, kind: {"url": value, "data": value, "file_id": value}}
        yield "/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]}
    schema = {"$ref": value, "$schema": value}
    for fields in (
        {},
        {"model": value},
        {"suffix": value},
        {"user": value, "metadata": {"path": value}},
        {"cache_salt": value},
        {"stop": [value]},
        {"chat_template": value},
        {"grammar": value},
        {"lora": value, "adapter": value, "lora_path": value},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": schema},
            }
        },
        {"prompt_embeds": value},
        {"logits_processors": [value]},
    ):
        yield "/v1/completions", {"prompt": value} | fields
    yield "/tokenize", {"prompt": value}
    yield "/v1/responses", {"input": value, "prompt": {"id": value}}
    yield "/v1/messages", {"messages": [{"role": "user", "content": value}], "max_tokens": 2}


@pytest.mark.parametrize("value", PATHS)
async def test_nothing_is_opened_for_a_request(value: str) -> None:
    model = ServedModel("fake-model", fake_engine.byte_tokenizer())
    server = ApiServer(ServerConfig(), Engine(SchedulerConfig()), model)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

        async def ask_all(text: str) -> set[int]:
            statuses = set()
            for path, body in bodies(text):
                limit = {} if "max_tokens" in body else {"max_tokens": 2}
                statuses.add((await client.post(path, json=body | limit)).status_code)
            quoted = quote(text)
            for path in (f"/v1/models/{quoted}", f"/{quoted}", f"/%2e%2e/{quoted}"):
                statuses.add((await client.get(path)).status_code)
            return statuses

        await ask_all("warm")  # what is imported when it is first used is imported now
        with watching() as seen:
            statuses = await ask_all(value)
    server.close()
    assert 200 in statuses
    assert max(statuses) < 500
    assert seen == []


def test_it_would_be_seen(tmp_path: Any) -> None:
    with watching() as seen:
        (tmp_path / "x").write_text("x")
    assert [event for event, _ in seen] == ["open"]
