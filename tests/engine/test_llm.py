"""LLM on the toy executor and a byte tokenizer: texts, choices, stop strings, streams, errors."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_models import EOS, TEMPLATE, byte_backend
from engine_schedules import toy_class, toy_reference

import trimtab
from trimtab import LLM, SamplingParams
from trimtab.builtin import draft_path
from trimtab.config import SchedulerConfig
from trimtab.engine.client import EngineRequest
from trimtab.engine.completion import RequestResult
from trimtab.engine.engine import Engine
from trimtab.engine.llm import split_settings
from trimtab.engine.sampling_params import choice_params
from trimtab.errors import CheckpointError, ConfigError, EngineDeadError, RequestError
from trimtab.executors.base import StepBatch, StepResult
from trimtab.tokenization import ChatTemplate, Tokenizer


def scripted_toy() -> Any:
    """Follows each prompt that ends in `>` with a fixed text, whatever the sampling."""

    class Scripted(toy_class()):  # type: ignore[misc]
        def execute(self, batch: StepBatch) -> StepResult:
            result: StepResult = super().execute(batch)
            script = [*tokenizer.encode("one two three é end"), EOS]
            for row, position in enumerate(batch.positions[batch.logit_rows]):
                result.tokens[row] = script[min(position - 2, len(script) - 1)]
            return result

    return Scripted(256, 4, vocab_size=257, max_context=128)


tokenizer = Tokenizer(byte_backend(), {"eos_token": "<eos>"}, (EOS,), ChatTemplate(TEMPLATE))


def length(max_tokens: int, **options: Any) -> SamplingParams:
    """Parameters under which nothing but the length ends a completion."""
    return SamplingParams(max_tokens=max_tokens, ignore_eos=True, **options)


def make(executor: Any = None, **config: Any) -> LLM:
    executor = executor or toy_class()(256, 4, vocab_size=257, max_context=128)
    return LLM.from_engine(Engine(executor, SchedulerConfig(**config), debug=True), tokenizer)


@pytest.fixture
def llm() -> Iterator[LLM]:
    with make() as llm:
        yield llm


@pytest.fixture
def scripted() -> Iterator[LLM]:
    with make(scripted_toy()) as llm:
        yield llm


def tokens(results: list[RequestResult]) -> list[list[list[int]]]:
    return [[output.token_ids for output in result.outputs] for result in results]


def test_generate_gives_each_prompt_its_own_answer_in_order(llm: LLM) -> None:
    params = SamplingParams(max_tokens=6, temperature=1.0, seed=3)
    prompts = ["hello", "hell", "hello world", "é"]
    results = llm.generate(prompts, params)
    assert [result.prompt for result in results] == prompts
    for prompt, result in zip(prompts, results, strict=True):
        ids = tokenizer.encode(prompt)
        request = EngineRequest("", ids, choice_params(params, 0, (EOS,)))
        reference = toy_reference(llm.engine.executor, request)
        assert result.prompt_ids == ids
        assert result.outputs[0].token_ids == reference.token_ids
        assert result.outputs[0].text == tokenizer.decode(reference.token_ids)
    assert tokens(llm.generate([tokenizer.encode(p) for p in prompts], params)) == tokens(results)
    assert tokens(llm.generate("hello", params)) == tokens(results)[:1]
    assert tokens(llm.generate(tokenizer.encode("hello"), params)) == tokens(results)[:1]


def test_params_for_each_prompt(llm: LLM) -> None:
    results = llm.generate(["a", "b"], [length(2), length(5)])
    assert [len(result.outputs[0].token_ids) for result in results] == [2, 5]
    with pytest.raises(RequestError, match="2 prompts, but 1 SamplingParams"):
        llm.generate(["a", "b"], [SamplingParams()])
    assert llm.generate([]) == []


def test_choices(llm: LLM) -> None:
    params = length(8, temperature=2.0, seed=11, n=3)
    (result,) = llm.generate("choose", params)
    assert [output.index for output in result.outputs] == [0, 1, 2]
    assert len({tuple(output.token_ids) for output in result.outputs}) == 3
    alone = llm.generate("choose", length(8, temperature=2.0, seed=11))
    assert alone[0].outputs[0].token_ids == result.outputs[0].token_ids


@pytest.mark.parametrize(
    ("stop", "include", "text", "reason"),
    [
        (("two",), False, "one ", "two"),
        (("two",), True, "one two", "two"),
        (("absent", "é"), False, "one two three ", "é"),
        (("nd and more",), False, "one two three é end", EOS),
        ((), False, "one two three é end", EOS),
        (("end",), False, "one two three é ", "end"),
    ],
)
def test_stop_strings(
    scripted: LLM, stop: tuple[str, ...], include: bool, text: str, reason: str | int
) -> None:
    params = SamplingParams(
        max_tokens=60, stop=stop, include_stop_in_output=include, logprobs=1, temperature=0
    )
    (result,) = scripted.generate("go>", params)
    (output,) = result.outputs
    assert (output.text, output.finish_reason, output.stop_reason) == (text, "stop", reason)
    assert tokenizer.decode(output.token_ids) == text
    assert output.logprobs is not None
    assert len(output.logprobs) == len(output.token_ids)
    assert scripted.engine.num_live_requests == 0
    deltas = list(scripted.stream("go>", params))
    assert "".join(delta.text for delta in deltas) == text
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["stop"]
    assert all("\ufffd" not in delta.text for delta in deltas)


def test_a_cut_by_length_releases_what_was_held_back(scripted: LLM) -> None:
    params = SamplingParams(max_tokens=6, stop=("two three",), temperature=0)
    (result,) = scripted.generate("go>", params)
    assert (result.outputs[0].text, result.outputs[0].finish_reason) == ("one tw", "length")


def test_the_tokenizers_end_token_ends_it(scripted: LLM) -> None:
    assert scripted.engine.executor.spec.eos_token_ids == ()
    (result,) = scripted.generate("go>", SamplingParams(max_tokens=40, temperature=0))
    assert result.outputs[0].stop_reason == EOS
    assert len(scripted.generate("go>", length(40))[0].outputs[0].token_ids) == 40


def test_chat_renders_the_template(llm: LLM) -> None:
    params = length(3, temperature=0)
    messages = [{"role": "user", "content": "hi"}]
    (one,) = llm.chat(messages, params)
    assert one.prompt_ids == tokenizer.encode("<user>hi<assistant>")
    several = llm.chat([messages, messages], params)
    assert tokens(several) == tokens([one, one])


def test_more_prompts_than_the_queue_holds() -> None:
    with make(max_num_requests=2, max_queued_requests=1) as llm:
        results = llm.generate([f"prompt {i}" for i in range(12)], length(3))
    assert [len(result.outputs[0].token_ids) for result in results] == [3] * 12


def test_nothing_runs_if_one_prompt_cannot(llm: LLM) -> None:
    for bad, words in (("", "empty"), ("x" * 200, "context length")):
        with pytest.raises(RequestError, match=words):
            llm.generate(["good", bad])
    assert llm.engine.stats().num_steps == 0
    assert llm.engine.num_live_requests == 0


def test_streams_can_be_read_in_turns_and_left(llm: LLM) -> None:
    params = length(9, temperature=0)
    whole = {name: llm.generate(name, params)[0].outputs[0].token_ids for name in ("a", "b")}
    first, second = llm.stream("a", params), llm.stream("b", params)
    left = llm.stream("left", length(100))
    next(left)
    got: dict[str, list[int]] = {"a": [], "b": []}
    got["a"] += next(first).token_ids
    got["b"] += [token for delta in second for token in delta.token_ids]
    left.close()  # type: ignore[attr-defined]
    got["a"] += [token for delta in first for token in delta.token_ids]
    assert got == whole
    assert llm.engine.num_live_requests == 0
    with pytest.raises(RequestError, match="empty"):
        llm.stream("")


def test_a_stream_of_several_choices(llm: LLM) -> None:
    params = length(5, temperature=1.5, seed=2, n=2)
    (whole,) = llm.generate("n", params)
    got: list[list[int]] = [[], []]
    for delta in llm.stream("n", params):
        got[delta.index] += delta.token_ids
    assert got == [output.token_ids for output in whole.outputs]


def test_closing_while_a_stream_is_read() -> None:
    llm = make()
    stream = llm.stream("a", length(50))
    next(stream)
    llm.close()
    with pytest.raises(EngineDeadError):
        list(stream)


def test_score(llm: LLM) -> None:
    scores = llm.score(["abc", "a"])
    assert [len(score) for score in scores] == [2, 0]
    (result,) = llm.generate("ab", length(1, logprobs=20, temperature=0))
    assert result.outputs[0].logprobs is not None
    top = dict(result.outputs[0].logprobs[0].top)
    best = max(top, key=lambda token_id: top[token_id])
    assert llm.score([[*tokenizer.encode("ab"), best]])[0][1] == pytest.approx(top[best], abs=1e-6)


def test_a_failing_step_is_an_error_result() -> None:
    class Broken(toy_class()):  # type: ignore[misc]
        def execute(self, batch: StepBatch) -> StepResult:
            raise ValueError("broken")

    with make(Broken(64, 4, vocab_size=257)) as llm:
        (result,) = llm.generate("x", SamplingParams(max_tokens=3))
        assert result.outputs[0].finish_reason == "error"
        assert "ValueError" in (result.outputs[0].error or "")


def test_settings() -> None:
    executor, scheduler = split_settings({"weights": "int8", "max_batch_tokens": 7})
    assert (executor.weights, scheduler.max_batch_tokens) == ("int8", 7)
    with pytest.raises(ConfigError, match="wieghts"):
        LLM("builtin", wieghts="int8")
    with pytest.raises(ConfigError, match="weights"):
        LLM("builtin", weights="int3")


def test_a_damaged_tokenizer_is_told_before_weights_are_read(
    tmp_path: Path,
) -> None:
    directory = Path(shutil.copytree(draft_path(), tmp_path / "draft"))
    (directory / "tokenizer.json").write_text("{")
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: is not a tokenizer"):
        LLM(str(directory), num_blocks=8)


def test_the_package_exports_lazily() -> None:
    code = (
        "import sys, trimtab; assert 'numpy' not in sys.modules;"
        "trimtab.SamplingParams(); assert 'numpy' not in sys.modules;"
        "trimtab.LLM; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    path = trimtab.__path__[0].removesuffix("trimtab")
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": path})
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        trimtab.nothing  # noqa: B018
