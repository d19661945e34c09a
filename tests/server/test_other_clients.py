"""Clients that others wrote over OpenAI's API: langchain, and litellm where an interpreter has it.

TRIMTAB_TEST_LITELLM names an interpreter in whose environment litellm is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest
from fake_engine import MODEL_NAME
from live import Live
from scripted import MARKERS, MODEL, scripted
from test_tool_calls import WEATHER
from tool_templates import HERMES

FIELDS: dict[str, Any] = {"temperature": 0, "max_tokens": 7}


def chat_text(server: Live, content: str) -> str:
    body = {"messages": [{"role": "user", "content": content}], **FIELDS}
    answer = server.post("/v1/chat/completions", json=body).json()
    return answer["choices"][0]["message"]["content"]  # type: ignore[no-any-return]


def langchain_model(server: Live, **fields: Any) -> Any:
    langchain_openai = pytest.importorskip("langchain_openai")
    return langchain_openai.ChatOpenAI(
        model=MODEL_NAME,
        base_url=f"{server.url}/v1",
        api_key="unused",
        max_retries=0,
        **FIELDS | fields,
    )


@pytest.mark.parametrize("responses", [False, True])
def test_langchain_invokes_and_streams(server: Live, responses: bool) -> None:
    model = langchain_model(server, use_responses_api=responses, stream_usage=True)
    expected = chat_text(server, "hello")
    whole = model.invoke("hello")
    assert whole.text == expected
    assert whole.usage_metadata["output_tokens"] == 7
    assert whole.usage_metadata["input_token_details"]["cache_read"] == 3
    chunks = list(model.stream("hello"))
    assert "".join(chunk.text for chunk in chunks) == expected
    assert sum((chunk.usage_metadata or {}).get("output_tokens", 0) for chunk in chunks) == 7
    if not responses:
        assert whole.response_metadata["finish_reason"] == "length"


def test_langchain_in_batches_and_with_logprobs(server: Live) -> None:
    model = langchain_model(server, logprobs=True, top_logprobs=2)
    answers = model.batch([f"question {i}" for i in range(8)])
    for i, answer in enumerate(answers):
        assert answer.text == chat_text(server, f"question {i}")
        entries = answer.response_metadata["logprobs"]["content"]
        assert "".join(entry["token"] for entry in entries) == answer.text


def test_langchain_sees_errors_as_openais(server: Live) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="temperature"):
        langchain_model(server, temperature=5).invoke("hello")


@pytest.mark.parametrize("responses", [False, True])
async def test_langchain_calls_tools(responses: bool) -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    from langchain_core.messages import HumanMessage, ToolMessage

    def get_weather(city: str) -> str:
        """Tell the weather."""
        return city

    async with scripted(HERMES, MARKERS) as server:
        model = langchain_openai.ChatOpenAI(
            model=MODEL,
            base_url="http://scripted/v1",
            api_key="unused",
            http_async_client=server.http,
            use_responses_api=responses,
            max_retries=0,
        ).bind_tools([get_weather])
        server.says(f"Let me see.<tool_call>{WEATHER}</tool_call>")
        question = HumanMessage("Weather?")
        answer = await model.ainvoke([question])
        (call,) = answer.tool_calls
        assert (call["name"], call["args"]) == ("get_weather", {"city": "Zürich 🙂"})
        assert answer.text == "Let me see."
        chunks = [chunk async for chunk in model.astream([question])]
        streamed = chunks[0]
        for chunk in chunks[1:]:
            streamed = streamed + chunk
        assert [one["args"] for one in streamed.tool_calls] == [call["args"]]
        server.says("Rain.")
        result = ToolMessage("rain, and then more", tool_call_id=call["id"])
        assert (await model.ainvoke([question, answer, result])).text == "Rain."
        assert "rain, and then more" in server.prompt
        assert server.prompt.count("get_weather") > 1  # the tool, and the call of it


LITELLM = """
import json, sys
import litellm
litellm.telemetry = False
url, model = sys.argv[1:]
common = dict(model="openai/" + model, api_base=url + "/v1", api_key="unused", temperature=0,
              max_tokens=7, num_retries=0)
messages = [{"role": "user", "content": "hello"}]
whole = litellm.completion(messages=messages, **common)
pieces = [chunk.choices[0].delta.content or ""
          for chunk in litellm.completion(messages=messages, stream=True, **common)]
legacy = {**common, "model": "text-completion-openai/" + model}
text = litellm.text_completion(prompt="hello", **legacy)
try:
    litellm.completion(messages=messages, **{**common, "temperature": 9})
    error = None
except litellm.BadRequestError as caught:
    error = str(caught)
print(json.dumps({
    "whole": whole.choices[0].message.content,
    "reason": whole.choices[0].finish_reason,
    "usage": whole.usage.completion_tokens,
    "stream": "".join(pieces),
    "text": text.choices[0].text,
    "error": error,
}))
"""


def test_litellm(server: Live) -> None:
    interpreter = os.environ.get("TRIMTAB_TEST_LITELLM")
    if not interpreter:
        pytest.skip("TRIMTAB_TEST_LITELLM names no interpreter")
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [interpreter, "-c", LITELLM, server.url, MODEL_NAME],
        capture_output=True,
        text=True,
        timeout=80,
        env=alone | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    body = {"prompt": "hello", **FIELDS}
    completion = server.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert found["whole"] == found["stream"] == chat_text(server, "hello")
    assert found["text"] == completion
    assert (found["reason"], found["usage"]) == ("length", 7)
    assert "temperature" in found["error"]
