import json
from datetime import datetime, timedelta

import pytest

from trimtab.errors import UserError
from trimtab.workloads.make import MARKS, make_workload

AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def written(tmp_path, lines, name="load.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def azure(tmp_path, rows, name="azure.csv"):
    start = datetime(2023, 11, 16, 18, 15, 46)
    path = tmp_path / name
    path.write_text(
        AZURE_HEADER
        + "".join(
            f"{start + timedelta(seconds=at):%Y-%m-%d %H:%M:%S}.{round(at % 1 * 1e7):07d},{i},{o}\n"
            for at, i, o in rows
        )
    )
    return str(path)


# -- users' own requests


def test_prompts_and_messages_keep_their_text_and_options(tmp_path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "x" * 40}]}]
    path = written(
        tmp_path,
        [
            {"prompt": "x" * 400, "max_tokens": 7, "temperature": 0.5, "stop": ["\n"]},
            {"messages": messages, "max_completion_tokens": 9, "id": "a"},
            {"messages": parts},
        ],
    )
    workload = make_workload(path, rate=3)
    first, second, third = workload.requests
    assert (first.text, first.messages) == ("x" * 400, None)
    assert first.options == {"temperature": 0.5, "stop": ["\n"]}
    assert (first.num_output_tokens, first.num_prompt_tokens) == (7, 100)
    assert (second.messages, second.num_output_tokens) == (messages, 9)
    assert (third.num_output_tokens, third.num_prompt_tokens) == (256, 10)
    assert all(one.pieces == () for one in workload.requests)
    assert "estimated" in workload.description["prompt_tokens_are"]
    assert workload.name == "load"


def test_a_line_of_openais_batch_format_is_read(tmp_path):
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    one = make_workload(written(tmp_path, [line]), concurrency=1).requests[0]
    assert one.messages == body["messages"]
    assert one.options == {}


def test_sessions_of_a_file_are_turns_with_pauses(tmp_path):
    path = written(
        tmp_path,
        [
            {"prompt": "a" * 40, "session": "x", "at": 5, "max_tokens": 10},
            {"prompt": "b" * 40, "session": 7, "at": 1, "max_tokens": 10},
            {"prompt": "c" * 40, "session": "x", "pause": 2.5, "max_tokens": 10},
        ],
    )
    workload = make_workload(path)
    assert [(one.text[0], one.at, one.follows) for one in workload.requests] == [
        ("b", 0.0, None),
        ("a", 4.0, None),
        ("c", 2.5, 1),
    ]
    assert workload.requests[2].num_prompt_tokens == 10 + 10 + 10
    assert workload.requests[2].session == workload.requests[1].session


def test_prompts_without_times_come_at_the_rate_and_again_if_there_are_too_few(tmp_path):
    path = written(tmp_path, [{"prompt": f"prompt {i}"} for i in range(10)])
    workload = make_workload(path, rate=5, duration=20)
    assert len(workload.requests) == 100
    assert workload.requests[13].text == "prompt 3"
    assert workload.description["repeats"] == 10
    assert workload == make_workload(path, rate=5, duration=20)
    assert len(make_workload(path, rate=5).requests) == 10
    closed = make_workload(path, concurrency=2, count=4)
    assert [one.at for one in closed.requests] == [0, 0, 0, 0]
    constant = make_workload(path, rate=2, burstiness=0)
    assert [one.at for one in constant.requests] == pytest.approx([i / 2 for i in range(10)])


def test_what_users_wrote_is_not_cut(tmp_path):
    path = written(tmp_path, [{"prompt": "x" * 4000}, {"prompt": "x"}])
    workload = make_workload(path, rate=1, max_context=512)
    assert len(workload.requests[0].text) == 4000
    assert workload.description["estimated_beyond_context"] == 1


def test_byte_order_mark_blank_lines_and_wide_lines_are_read(tmp_path):
    path = tmp_path / "load.jsonl"
    text = "\n\n".join(json.dumps({"prompt": "ä" * 200_000}, ensure_ascii=False) for _ in range(3))
    path.write_text("\ufeff" + text, encoding="utf-8")
    assert len(make_workload(str(path), rate=1).requests) == 3


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ("[1]", "object"),
        ("[" * 100_000, "not JSON"),
        ("{}", "a prompt or messages"),
        ('{"prompt": "a", "messages": []}', "a prompt or messages"),
        ('{"prompt": ""}', "prompt must"),
        ('{"prompt": 3}', "prompt must"),
        ('{"messages": []}', "messages must"),
        ('{"messages": "hi"}', "messages must"),
        ('{"messages": [{"content": "hi"}]}', "messages[0] needs a role"),
        ('{"messages": [{"role": "user", "content": 3}]}', "messages[0].content"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens"),
        ('{"prompt": "a", "max_tokens": 1.5}', "max_tokens"),
        ('{"prompt": "a", "max_tokens": true}', "max_tokens"),
        ('{"prompt": "a", "max_tokens": 1, "max_completion_tokens": 1}', "not both"),
        ('{"prompt": "a", "at": -1}', "at must"),
        ('{"prompt": "a", "at": NaN}', "at must"),
        ('{"prompt": "a", "at": true}', "at must"),
        ('{"prompt": "a", "at": "noon"}', "at must"),
        ('{"prompt": "a", "at": 1, "timestamp": 2}', "not both"),
        ('{"prompt": "a", "session": [1]}', "session must"),
        ('{"prompt": "a", "pause": 1}', "later turns"),
        ('{"prompt": "a", "session": 1, "at": 3}', "takes a pause"),
        ('{"prompt": "a", "session": 1, "pause": "x"}', "pause must"),
        ('{"prompt": "a", "temprature": 1}', 'unknown field "temprature"'),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, problem):
    path = tmp_path / "load.jsonl"
    path.write_text('{"prompt": "good", "session": 1}\n\n' + line + "\n")
    with pytest.raises(UserError) as caught:
        make_workload(str(path), rate=1)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n \n")
    binary.write_bytes(b'{"prompt": "\xff\xfe"}\n')
    text, secret = tmp_path / "notes.txt", tmp_path / "secret"
    text.write_text("just notes\n")
    for source, problem in (
        (empty, "no requests"),
        (binary, "not UTF-8"),
        (text, "line 1: not JSON; a workload is JSON lines"),
        (tmp_path, "is a directory"),
        (secret, "no such file"),
    ):
        with pytest.raises(UserError) as caught:
            make_workload(str(source), rate=1)
        assert problem in str(caught.value)
        assert "\n" not in str(caught.value)
    some = written(tmp_path, [{"prompt": "a", "at": 1}, {"prompt": "b"}])
    with pytest.raises(UserError, match="some requests have a time"):
        make_workload(some, rate=1)
    with pytest.raises(UserError, match="no different times, so a rate"):
        make_workload(written(tmp_path, [{"prompt": "a"}]))


# -- Azure


def test_an_azure_trace_is_replayed_at_its_own_times(tmp_path):
    path = azure(tmp_path, [(0.68059, 100, 10), (2.5, 200, 20), (3.25, 0, 5), (4.0, 300, 30)])
    workload = make_workload(path)
    assert [one.at for one in workload.requests] == pytest.approx([0, 1.81941, 3.31941], abs=1e-5)
    assert [one.num_prompt_tokens for one in workload.requests] == [100, 200, 300]
    assert [one.num_output_tokens for one in workload.requests] == [10, 20, 30]
    assert workload.rate == pytest.approx(3 / (3.31941 * 3 / 2))
    assert workload.description["skipped"] == 1
    assert len({piece.key for one in workload.requests for piece in one.pieces}) == 3


def test_a_trace_is_stretched_to_a_rate(tmp_path):
    path = azure(tmp_path, [(i * i / 50, 50, 5) for i in range(50)])
    plain, fast = make_workload(path), make_workload(path, rate=10)
    assert fast.rate == 10
    stretch = plain.rate / 10
    for slow, quick in zip(plain.requests, fast.requests, strict=True):
        assert quick.at == pytest.approx(slow.at * stretch)
    assert fast.duration == pytest.approx(50 / 10, rel=0.05)
    short = make_workload(path, rate=10, duration=1)
    assert 0 < len(short.requests) < 50
    assert short.duration < 1
    assert len(make_workload(path, count=7).requests) == 7
    with pytest.raises(UserError, match="give a rate"):
        make_workload(path, burstiness=1)
    poisson = make_workload(path, rate=10, burstiness=1)
    assert poisson.description["arrivals"] == "Poisson"
    closed = make_workload(path, concurrency=3)
    assert (closed.rate, closed.duration, len(closed.requests)) == (None, 0, 50)


def test_a_trace_is_scaled_until_it_fits(tmp_path):
    path = azure(tmp_path, [(i, 40 * (i + 1), 100) for i in range(200)])
    workload = make_workload(path, max_context=2048)
    assert workload.description["scale"] == pytest.approx(2048 / 8020, rel=0.01)
    assert workload.description["cut"] <= 2
    assert all(one.num_prompt_tokens + one.num_output_tokens <= 2048 for one in workload.requests)
    half = make_workload(path, scale=0.5)
    assert half.requests[99].num_prompt_tokens == 2000
    assert half.requests[99].num_output_tokens == 50


def test_azures_trace_of_2024_has_zones(tmp_path):
    path = tmp_path / "azure.csv"
    path.write_text(
        AZURE_HEADER + "2024-05-10 00:00:00.009930+00:00,10,5\n2024-05-10 02:00:01+02:00,10,5\n"
    )
    assert make_workload(str(path)).requests[1].at == pytest.approx(0.99007, abs=1e-5)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("2023-11-16 18:15:46,10", "2 cells, but the header has 3"),
        ("yesterday,10,10", "TIMESTAMP must be a time like"),
        ("2023-13-46 18:15:46,10,10", "TIMESTAMP must be a time like"),
        ("2023-11-16 18:15:46,ten,10", "ContextTokens must be a whole number"),
        ("2023-11-16 18:15:46,10,-1", "GeneratedTokens must be a whole number"),
        ("2023-11-16 18:15:46,10,99999999999", "GeneratedTokens must be a whole number"),
    ],
)
def test_a_wrong_row_of_azures_is_named(tmp_path, row, problem):
    path = tmp_path / "azure.csv"
    path.write_text(AZURE_HEADER + "2023-11-16 18:15:46,10,10\n" + row + "\n")
    with pytest.raises(UserError) as caught:
        make_workload(str(path), rate=1)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert problem in str(caught.value)


def test_a_missing_column_of_azures_is_named(tmp_path):
    path = tmp_path / "azure.csv"
    path.write_text("TIMESTAMP,ContextTokens\n1,2\n")
    with pytest.raises(UserError, match=r"line 1: .*column GeneratedTokens"):
        make_workload(str(path), rate=1)


# -- Mooncake


def mooncake(tmp_path, lines):
    return written(
        tmp_path,
        [
            {"timestamp": at, "input_length": i, "output_length": o, "hash_ids": ids}
            for at, i, o, ids in lines
        ],
    )


def test_a_mooncake_trace_has_real_shared_prefixes(tmp_path):
    path = mooncake(
        tmp_path,
        [(0, 1100, 50, [1, 2, 3]), (3000, 1536, 60, [1, 2, 9]), (6000, 700, 0, [1, 5])],
    )
    first, second = make_workload(path).requests
    assert [piece.length for piece in first.pieces] == [512, 512, 76]
    assert [piece.length for piece in second.pieces] == [512, 512, 512]
    assert first.pieces[:2] == second.pieces[:2]
    assert first.pieces[2].key != second.pieces[2].key
    assert (first.num_prompt_tokens, first.num_output_tokens) == (1100, 50)
    assert second.at == 3.0
    again = make_workload(path, seed=1).requests[0]
    assert again.pieces[0].key != first.pieces[0].key


def test_a_scaled_mooncake_trace_still_shares(tmp_path):
    lines = [(1000 * i, 5120, 512, [*range(9), 100 + i]) for i in range(20)]
    workload = make_workload(mooncake(tmp_path, lines), max_context=1024)
    assert workload.description["scale"] == pytest.approx((1024 - MARKS) / 5632, rel=0.01)
    assert len({one.pieces[:9] for one in workload.requests}) == 1
    for one in workload.requests:
        assert one.num_prompt_tokens + one.num_output_tokens <= 1024 - MARKS
        assert one.num_prompt_tokens == pytest.approx(5120 * 1008 / 5632, rel=0.02)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"timestamp": "soon"}, "timestamp must"),
        ({"timestamp": None}, "timestamp must"),
        ({"input_length": 1.5}, "input_length must"),
        ({"output_length": -3}, "output_length must"),
        ({"hash_ids": "12"}, "hash_ids must"),
        ({"hash_ids": [1, "2"]}, "hash_ids must"),
        ({"hash_ids": [1]}, "600 tokens are 2 blocks of 512, but hash_ids has 1"),
    ],
)
def test_a_wrong_line_of_mooncakes_is_named(tmp_path, change, problem):
    good = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
    path = written(tmp_path, [good, {**good, **change}])
    with pytest.raises(UserError) as caught:
        make_workload(path, rate=1)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert problem in str(caught.value)
    missing = written(tmp_path, [good, {"input_length": 600, "output_length": 5}])
    with pytest.raises(UserError, match=r"line 2: .*has timestamp"):
        make_workload(missing, rate=1)


def test_a_mooncake_trace_without_blocks_shares_nothing(tmp_path):
    lines = [{"timestamp": i, "input_length": 600, "output_length": 5} for i in range(3)]
    workload = make_workload(written(tmp_path, lines), rate=2)
    assert len({one.pieces for one in workload.requests}) == 3
