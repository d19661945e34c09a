"""The OpenAPI document: complete, valid, and true to what the server takes and answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest
from fake_engine import MODEL_NAME, VOCAB_SIZE, byte_tokenizer
from live import SOURCE, Live, end, environment, serve_command, start
from tiny_model import write_tiny_model

from trimtab.config import ServerConfig
from trimtab.server.app import ApiServer
from trimtab.server.openapi import OPERATIONS
from trimtab.server.text import ServedModel

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,negative_data_rejection"
)


@pytest.fixture(scope="module")
def document(server: Live) -> dict[str, Any]:
    return server.get("/openapi.json").json()  # type: ignore[no-any-return]


def test_every_route_of_the_api_is_in_it() -> None:
    served = ServedModel(MODEL_NAME, byte_tokenizer())
    api = ApiServer(ServerConfig(), cast(Any, None), served)
    try:
        routes = {
            (method.lower(), route.path.replace(":path", ""))
            for route in api.routes
            for method in (route.methods or ()) - {"HEAD"}
        }
    finally:
        api.close()
    documented = {(operation.method, operation.path) for operation in OPERATIONS}
    assert documented <= routes
    assert {route for route in routes if route[1].startswith("/v1/")} <= documented


def test_its_schemas_are_schemas_and_its_references_lead_somewhere(
    document: dict[str, Any],
) -> None:
    components = document["components"]["schemas"]
    for schema in components.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in components
    names = [op["operationId"] for path in document["paths"].values() for op in path.values()]
    assert len(set(names)) == len(names) == len(OPERATIONS)


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def request_schema(document: dict[str, Any], path: str) -> Any:
    body = document["paths"][path]["post"]["requestBody"]
    return jsonschema.Draft202012Validator(
        {
            **body["content"]["application/json"]["schema"],
            "components": document["components"],
        }
    )


VALUES: dict[str, list[Any]] = {
    "n": [0, 1, 3, 129, 1.5],
    "max_tokens": [-1, 0, 1, 5],
    "min_tokens": [-1, 0, 1, 5],
    "temperature": [-0.1, 0, 5e-324, 1e-40, 2, 2.1, "x"],
    "top_p": [0, 5e-324, 1e-40, 0.1, 1, 1.1],
    "top_k": [-2, -1, 0, 7],
    "min_p": [-0.1, 0, 1, 1.1],
    "presence_penalty": [-2.1, -2, 2, 2.1],
    "frequency_penalty": [-2.1, -2, 2, 2.1],
    "repetition_penalty": [0, 1e-40, 0.01, 100, 101],
    "use_beam_search": [False, 0],
    "seed": [-(1 << 63) - 1, -(1 << 63), (1 << 64) - 1, 1 << 64],
    "priority": [-(1 << 63) - 1, -(1 << 63), (1 << 63) - 1, 1 << 63],
    "prompt_logprobs": [-1, 0, 20, 21],
    "truncate_prompt_tokens": [-2, -1, 1],
    "stop": ["", "x", ["x"] * 16, ["x"] * 17, ["x" * 1024], ["x" * 1025]],
    "stop_token_ids": [[], [-1], [VOCAB_SIZE - 1], [VOCAB_SIZE], [1] * 1024, [1] * 1025],
    "allowed_token_ids": [[], [97, 98], [VOCAB_SIZE]],
    "bad_words": [[], [""], ["x"], ["x"] * 64, ["x"] * 65, ["x" * 128], ["x" * 129]],
    "logit_bias": [{}, {"1": -100}, {"1": 101}, {"x": 1}, {str(i): 1 for i in range(1025)}],
    "echo": [True, 1],
    "suffix": [None, "", "x"],
    "model": [None, MODEL_NAME, "other"],
    "best_of": [0, 1, 128, 129],
    "logprobs": [True, 0, 20, 21],
    "top_logprobs": [0],
    "prompt": ["", [], [""], [[]], [97], ["a", "b"], [[97], [98]], [VOCAB_SIZE], [1, "a"]],
    "messages": [
        [],
        ["x"],
        [{"role": "user", "content": "x"}],
        [{"role": "wizard", "content": "x"}],
        [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    ],
    "tools": [[], [{"type": "function", "function": {"name": "a b"}}], [{"type": "x"}]],
    "typical_p": [1, 0.5],
    "mirostat": [0, 2],
}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_it_takes_what_the_server_takes(server: Live, document: dict[str, Any], path: str) -> None:
    """Field by field, at and beyond every bound."""
    schema = request_schema(document, path)
    names = schema.schema["$ref"].rpartition("/")[2]
    properties = document["components"]["schemas"][names]["properties"]
    is_chat = path == "/v1/chat/completions"
    base: dict[str, Any] = {"max_tokens": 5}
    if is_chat:
        base["messages"] = [{"role": "user", "content": "x"}]
    else:
        base |= {"prompt": "x", "echo": True}
    num_checked = 0
    for name, values in VALUES.items():
        for value in values:
            if name not in properties or (is_chat and name in ("echo", "top_logprobs")):
                continue
            body = base | {name: value}
            response = server.post(path, json=body)
            assert response.status_code < 500
            assert schema.is_valid(body) == (response.status_code == 200), (name, value)
            num_checked += 1
    assert num_checked > 80


def test_the_page_of_all_fields_is_up_to_date() -> None:
    """`PYTHONPATH=src python tools/api_fields.py` writes it."""
    done = subprocess.run(
        [sys.executable, "-c", "import api_fields; print(end=api_fields.page())"],
        capture_output=True,
        text=True,
        check=True,
        env=environment() | {"PYTHONPATH": f"{SOURCE}:{SOURCE.parent / 'tools'}"},
    )
    assert (SOURCE.parent / "docs" / "api.md").read_text() == done.stdout


def test_random_requests_are_answered_as_it_says(tmp_path: Path) -> None:
    """schemathesis, over the whole document, against the native engine."""
    pytest.importorskip("schemathesis")
    model = write_tiny_model(tmp_path / "tiny")
    real = start(serve_command(model, "--json", "--weights", "f32", "--threads", "1"))
    try:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{real.url}/openapi.json"),
                *("--max-examples", "5"),
                *("--phases", "fuzzing", "--checks", CHECKS, "--seed", "5"),
                *("--request-timeout", "20", "--no-color", "--suppress-health-check", "all"),
            ],
            capture_output=True,
            text=True,
            timeout=80,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert f"{len(OPERATIONS)} passed" in done.stdout
        assert "Traceback" not in real.error_text()
    finally:
        end(real)
