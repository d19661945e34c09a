"""Keys and their limits: files, names, constant-time search, requests and tokens a minute."""

from __future__ import annotations

import hashlib
import hmac
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fake_engine import byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from live import HERE, Live, environment, live_server, wait_until

from trimtab.config import ServerConfig
from trimtab.errors import ConfigError
from trimtab.server import keys
from trimtab.server.api_errors import ApiError
from trimtab.server.desk import Desk
from trimtab.server.keys import Account, Bucket, Key, KeyRing, digest_of, make_keys, read_keys
from trimtab.server.observation import Call, Observer, current_call
from trimtab.server.text import ServedModel

TEXT = "/v1/completions"


def key_file(directory: Path, text: str, mode: int = 0o600) -> Path:
    path = directory / "keys"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_file_of_keys(tmp_path: Path) -> None:
    hashed = hashlib.sha256(b"hidden").hexdigest()
    path = key_file(tmp_path, f"# who\n\nann key-a\nbob\tsha256:{hashed} 10 -\nc key-c - 500\n")
    assert read_keys(path) == [
        Key("ann", digest_of("key-a")),
        Key("bob", digest_of("hidden"), 10, None),
        Key("c", digest_of("key-c"), None, 500),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ann", "line 1: must be NAME KEY"),
        ("ann s3cret 1 2 3", "line 1: must be NAME KEY"),
        ("\nann/x s3cret", "line 2: a name is"),
        ("ann sha256:12", "64 hexadecimal digits"),
        ("ann s3cr\u00e9t", "visible ASCII"),
        ("ann s3cret 0", "a limit is"),
        ("ann s3cret -5", "a limit is"),
        ("ann s3cret 1.5", "a limit is"),
        ("ann s3cret 9999999999999999999999999", "a limit is"),
        ("# nobody", "no key in it"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read_keys(key_file(tmp_path, text))
    assert "s3cr" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_others_can_read_may_only_hold_digests(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="chmod 600"):
        read_keys(key_file(tmp_path, "ann s3cret", mode=0o644))
    hashed = hashlib.sha256(b"s3cret").hexdigest()
    assert read_keys(key_file(tmp_path, f"ann sha256:{hashed}", mode=0o644))
    with pytest.raises(ConfigError, match="No such file"):
        read_keys(tmp_path / "nothing")


def test_names_and_keys_are_there_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two names"):
        make_keys("one", str(key_file(tmp_path, "default two")))
    with pytest.raises(ConfigError, match="two keys"):
        make_keys("one", str(key_file(tmp_path, "other one")))
    assert [key.name for key in make_keys("one", str(key_file(tmp_path, "b two")))] == [
        "default",
        "b",
    ]
    assert make_keys(None, None) == []


def test_every_key_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = KeyRing([Key(f"k{i}", digest_of(f"key-{i}")) for i in range(5)], 0)
    compared = []
    compare_digest = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return compare_digest(a, b)

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    for given_key, name in ((b"key-0", "k0"), (b"key-4", "k4"), (b"key-", None), (b"", None)):
        compared.clear()
        found = ring.find(given_key)
        assert (found.key.name if found else None) == name
        assert compared == [(32, 32)] * 5


def test_a_key_is_in_no_representation() -> None:
    config = ServerConfig(api_key="s3cret", admin_key="s3cret-too")
    assert "s3cret" not in repr(config)
    assert "s3cret" not in repr(make_keys("s3cret", None))


@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=40),
)
def test_a_bucket_never_gives_more_than_its_limit_a_minute(
    limit: int, asks: list[tuple[float, int]]
) -> None:
    bucket, now = Bucket(limit, 0.0), 0.0
    given_out = []
    for pause, amount in asks:
        now += pause
        wait = bucket.seconds_until(amount, now)
        if wait == 0:
            bucket.take(amount, now)
            given_out.append((now, amount))
        elif amount <= limit:
            assert bucket.seconds_until(amount, now + wait + 1e-6) < 1e-6
    for start, _ in given_out:
        within = sum(amount for at, amount in given_out if start <= at < start + 60)
        assert within <= 2 * limit + 1e-6  # a full bucket, and what fills up meanwhile
    assert sum(amount for _, amount in given_out) <= limit * (1 + now / 60) + 1e-6


def test_tokens_that_were_generated_are_owed() -> None:
    account = Account(Key("k", b"", None, 600), 0.0)
    account.take_request(0.0)
    account.take_prompt(100, 0.0)
    account.take_completion(550, 0.0)
    with pytest.raises(ApiError) as caught:
        account.take_request(1.0)  # 50 are owed; ten come back each second
    assert caught.value.headers == {"Retry-After": "4"}
    account.take_request(5.1)
    with pytest.raises(ApiError) as caught:
        account.take_prompt(601, 60.0)
    assert caught.value.headers == {"x-should-retry": "false"}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Any:
    text = "slow key-slow 2\nsmall key-small - 60\nfree key-free\n"
    path = key_file(tmp_path_factory.mktemp("keys"), text)
    with live_server(server={"api_key_file": str(path)}) as live:
        yield live


def ask(server: Live, key: str, prompt: str = "hi", max_tokens: int = 1) -> httpx.Response:
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    return server.post(TEXT, json=body, headers={"authorization": f"Bearer {key}"})


def test_requests_a_minute(limited: Live) -> None:
    answers = [ask(limited, "key-slow") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    remaining = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
    assert remaining == ["1", "0", "0"]
    refused = answers[2]
    assert refused.headers["x-ratelimit-limit-requests"] == "2"
    assert 0 < float(refused.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    # Reading costs nothing, and nobody else pays.
    headers = {"authorization": "Bearer key-slow"}
    assert limited.get("/v1/models", headers=headers).status_code == 200
    assert ask(limited, "key-free").status_code == 200
    with pytest.raises(openai.RateLimitError):
        limited.openai("key-slow").completions.create(model="fake-model", prompt="hi")


def test_tokens_a_minute(limited: Live) -> None:
    first = ask(limited, "key-small", "a" * 20, max_tokens=30)
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-tokens"] == "60"
    assert ask(limited, "key-small", "b" * 40).json()["error"]["code"] == "rate_limit_exceeded"
    too_long = ask(limited, "key-small", "c" * 61)
    assert too_long.status_code == 429
    assert too_long.headers["x-should-retry"] == "false"


def test_both_headers_are_taken(limited: Live) -> None:
    both = {"authorization": "Bearer key-free", "x-api-key": "key-free"}
    for headers in ({"x-api-key": "key-free"}, {"authorization": "bearer key-free"}, both):
        assert limited.get("/v1/models", headers=headers).status_code == 200


def test_a_salt_comes_from_the_key_and_narrows_it() -> None:
    desk = Desk(ServerConfig(), None, ServedModel("m", byte_tokenizer()))  # type: ignore[arg-type]
    salts = set()
    for key in (None, "ann", "bob"):
        account = None if key is None else Account(Key(key, digest_of(key)), 0.0)
        token = current_call.set(Call(Observer(), "id", account=account))
        for salt in (None, "", "theirs", "other"):
            same = {desk.placement("", cache_salt=salt).cache_salt for _ in range(2)}
            assert len(same) == 1
            salts |= same
        current_call.reset(token)
    assert len(salts) == 3 * 3  # no salt and an empty one are the same
    assert not any("ann" in salt or "theirs" in salt for salt in salts)
    desk.close()


def test_no_key_reaches_the_logs(tmp_path: Path) -> None:
    path = key_file(tmp_path, "ann s3cret-one\n")
    with live_server(server={"api_key_file": str(path), "log_requests": True}) as server:
        for key in ("s3cret-one", "s3cret-two"):
            ask(server, key, "PRIVATE prompt")
        wait_until(lambda: server.error_text().count("INFO: request") == 2)
        text = server.error_text()
        assert "key=ann" in text
        assert "s3cret" not in text
        assert "PRIVATE" not in text
        command = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
        assert b"s3cret" not in command


def test_a_bad_key_file_is_one_line_and_starts_nothing(tmp_path: Path) -> None:
    path = key_file(tmp_path, "ann s3cret\n", mode=0o644)
    options = json.dumps({"server": {"api_key_file": str(path)}})
    command = [sys.executable, str(HERE / "serve_fake.py"), options]
    done = subprocess.run(command, capture_output=True, env=environment(), text=True, timeout=30)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"trimtab: error: api_key_file {path}: everybody")
    assert "s3cret" not in done.stderr
