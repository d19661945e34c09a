"""Pieces of the server without a server."""

from __future__ import annotations

import itertools
import json

import msgspec
import pytest
from fake_engine import EOS, byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.engine.client import (
    EngineInfo,
    EngineRequest,
    EngineStats,
    TokenLogprobs,
    TokenOutput,
)
from trimtab.engine.sampling_params import SamplingParams
from trimtab.server import messages
from trimtab.server.choice import Choice
from trimtab.server.formats import readable
from trimtab.server.json_body import too_complex

TOKENIZER = byte_tokenizer()

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='[]{}"\\a'),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('[{"\\'), inner, max_size=3)
    ),
    max_leaves=20,
)


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


def containers_in(value: object) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(containers_in, value.values()))
    if isinstance(value, list):
        return 1 + sum(map(containers_in, value))
    return 0


@given(json_values, st.integers(0, 6), st.integers(0, 12))
def test_json_complexity(value: object, depth: int, containers: int) -> None:
    expected = depth_of(value) > depth or containers_in(value) > containers
    assert too_complex(json.dumps(value).encode(), depth, containers) == expected


@given(st.binary(max_size=200))
def test_json_complexity_takes_any_bytes(data: bytes) -> None:
    too_complex(data, 3, 3)


SAMPLE_STATS = EngineStats(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
SAMPLES: list[messages.Command | messages.Event] = [
    messages.Submit(
        EngineRequest(
            "r",
            [1, 2],
            SamplingParams(seed=(1 << 64) - 1, logit_bias={5: -1.5}, stop=("a",), logprobs=3),
        )
    ),
    messages.Abort("r"),
    messages.ResetPrefixCache(),
    messages.Shutdown(),
    messages.Heartbeat(),
    messages.Heartbeat(SAMPLE_STATS),
    messages.Ready(EngineInfo(10, 20, 30, 40, "x"), SAMPLE_STATS),
    messages.StartFailed("no", True),
    messages.Rejected("r", "queue_full", "full"),
    messages.Outputs(
        [
            TokenOutput("r", [1], [TokenLogprobs(-0.5, [(1, float("-inf"))])], "stop", 3),
            TokenOutput(
                "s",
                [],
                prompt_logprobs=[TokenLogprobs(-1.5, [(7, -0.25)])],
                stop_logprobs=TokenLogprobs(-2.5),
            ),
        ],
        SAMPLE_STATS,
    ),
]


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: type(message).__name__)
def test_messages_survive_the_wire(message: messages.Command | messages.Event) -> None:
    frame = messages.encode(message)
    decode = (
        messages.decode_command if isinstance(message, messages.Command) else messages.decode_event
    )
    assert decode(frame) == message


@given(st.binary(max_size=100))
def test_malformed_frames_raise_one_kind_of_error(frame: bytes) -> None:
    for decode in (messages.decode_command, messages.decode_event):
        with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)):
            decode(frame)


def test_an_event_is_no_command() -> None:
    with pytest.raises(msgspec.ValidationError):
        messages.decode_command(messages.encode(messages.Heartbeat()))
    with pytest.raises(msgspec.ValidationError):
        messages.decode_event(messages.encode(messages.Shutdown()))


def test_the_launch_line_survives_json() -> None:
    launch = messages.Launch(
        "m",
        ExecutorConfig(weights="int4"),
        SchedulerConfig(prefix_cache=False),
        7,
        "a:b",
        1,
    )
    assert msgspec.json.decode(msgspec.json.encode(launch), type=messages.Launch) == launch


def take_all(
    text: bytes, params: SamplingParams, cuts: list[int], stop_token: bool
) -> tuple[str, list[tuple[int, int]], str | None]:
    """Feed the bytes in hands cut at `cuts`: text, (token, offset) of the logprobs, reason."""
    choice = Choice(0, params, TOKENIZER)
    bounds = [0, *sorted({min(cut, len(text)) for cut in cuts}), len(text)]
    hands = [list(text[a:b]) for a, b in itertools.pairwise(bounds)]
    out, tokens, reason = "", [], None
    for i, hand in enumerate(hands):
        last = i == len(hands) - 1
        event = choice.take(
            TokenOutput(
                "r",
                hand,
                [TokenLogprobs(-float(token)) for token in hand],
                ("stop" if stop_token else "length") if last else None,
                EOS if last and stop_token else None,
            )
        )
        out += event.text
        tokens += [(t.token_id, t.text_offset) for t in event.tokens]
        assert all(t.logprobs == TokenLogprobs(-float(t.token_id)) for t in event.tokens)
        if event.finish_reason:
            reason = event.finish_reason
            break
    assert choice.finished
    return out, tokens, reason


@given(
    st.text(alphabet="abé🙂 ", max_size=24),
    st.lists(st.text(alphabet="abé", min_size=1, max_size=3), max_size=3),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(0, 60), max_size=8),
)
def test_a_choice_does_not_depend_on_how_tokens_arrive(
    text: str, stop: list[str], include: bool, stop_token: bool, cuts: list[int]
) -> None:
    params = SamplingParams(stop=tuple(stop), include_stop_in_output=include, logprobs=0)
    data = text.encode()
    whole = take_all(data, params, [], stop_token)
    assert take_all(data, params, cuts, stop_token) == whole
    out, tokens, reason = whole
    assert bytes(token for token, _ in tokens).decode() == out
    assert reason == ("stop" if stop_token or len(out) < len(text) else reason)
    for token, offset in tokens:
        assert chr(token) == out[offset] or token >= 0x80


def test_readable_tokens() -> None:
    assert readable("é".encode()) == "é"
    assert readable(b"\xe2\x80") == "bytes:\\xe2\\x80"


@given(st.lists(st.binary(max_size=9), max_size=6), st.lists(st.integers(0, 7), max_size=30))
def test_frames_come_out_however_they_arrive(documents: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(messages.framed, documents))
    frames, found = messages.Frames(), []
    for size in [*cuts, len(stream)]:
        found += frames.split(stream[:size])
        stream = stream[size:]
    assert found == documents


def test_a_frame_that_is_too_long() -> None:
    """It is refused as soon as its length is there."""
    length = (messages.MAX_FRAME_BYTES + 1).to_bytes(messages.LENGTH_BYTES, "little")
    for piece in (length, length + b"something"):
        (document,) = messages.Frames().split(piece)
        with pytest.raises(msgspec.DecodeError):
            messages.decode_event(document)
