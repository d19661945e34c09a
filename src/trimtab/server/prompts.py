"""Request text to token ids: prompts of every shape, and messages through the chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from trimtab.engine.admission import check_choosable
from trimtab.engine.client import EngineInfo
from trimtab.engine.grammar_source import check_source
from trimtab.engine.sampling_params import SamplingParams
from trimtab.errors import RequestError
from trimtab.server.api_errors import bad_request
from trimtab.server.api_types import ChatRequest, CompletionRequest, GenerationFields, Message
from trimtab.server.conversation import Conversation, read_conversation, read_messages
from trimtab.server.generation import Prompt
from trimtab.server.parsing.choose import ModelParsers
from trimtab.server.structured import AskedGrammar, asked_grammar
from trimtab.server.text import TextWorkers
from trimtab.server.tools import ToolUse
from trimtab.server.validation import (
    MAX_SEQUENCES,
    check_num_choices,
    check_prompt_fields,
    check_size,
    check_token_ids,
    completes,
    context_limit,
    fit_context,
)
from trimtab.tokenization import TextStream, Tokenizer

MESSAGE_CHARACTERS = 128  # a template's work for a message, empty or not, in characters of text
MAX_TOKEN_CHARACTERS = 128  # no text has longer tokens on average
MAX_BAD_WORDS = 64
MAX_BAD_CHARACTERS = 128


class PromptMaker:
    def __init__(self, tokenizer: Tokenizer, workers: TextWorkers, parsers: ModelParsers) -> None:
        self._tokenizer = tokenizer
        self._parsers = parsers
        self._workers = workers

    async def completion(
        self, asked: CompletionRequest, params: SamplingParams, info: EngineInfo
    ) -> list[Prompt]:
        """Raises ApiError 400 for a prompt that is empty, too long or not of a known shape."""
        check_prompt_fields(asked)
        truncates = asked.truncate_prompt_tokens is not None
        slack = MAX_TOKEN_CHARACTERS if truncates else 1
        prompts = prompt_list(asked.prompt, info, "prompt", MAX_SEQUENCES, slack)
        check_num_choices(params.n, len(prompts))
        params = self._with_bad_words(params, asked.bad_words, info)
        grammar = asked_grammar(asked)
        scored = bool(asked.echo) and asked.logprobs is not None
        size = sum(len(prompt) for prompt in prompts if isinstance(prompt, str))
        result = []
        for prompt in prompts:
            if isinstance(prompt, str):
                check_text(len(prompt), info, "prompt")
                add_special_tokens = asked.add_special_tokens is not False
                encode = partial(self._tokenizer.encode, prompt, add_special_tokens)
                token_ids = await self._workers.run(size, encode)
                text = prompt
            else:
                check_token_ids(prompt, info, "prompt")
                token_ids = prompt
                text = self._tokenizer.decode(prompt) if asked.echo else ""
            if not token_ids:
                raise bad_request("prompt: must not be empty", "prompt")
            kept = _truncated(token_ids, asked, params, info)
            if len(kept) < len(token_ids):
                token_ids = kept
                text = self._tokenizer.decode(kept) if asked.echo else ""
            fitted = fit_context(
                params,
                len(token_ids),
                info,
                named=asked.max_tokens is not None,
                completes=completes(asked),
            )
            offsets = None
            if scored:
                is_text = isinstance(prompt, str) and text == prompt
                find = partial(token_offsets, self._tokenizer, token_ids, text, is_text)
                offsets = await self._workers.run(len(text), find)
            result.append(
                Prompt(
                    token_ids,
                    fitted,
                    text,
                    offsets,
                    completes(asked),
                    asked.prompt_logprobs,
                    bool(asked.return_token_ids),
                    grammar,
                )
            )
        return result

    async def chat(self, asked: ChatRequest, params: SamplingParams, info: EngineInfo) -> Prompt:
        """Raises ApiError or RequestError 400 for messages that cannot be served."""
        check_prompt_fields(asked)
        params = self._with_bad_words(params, asked.bad_words, info)
        check_size(len(asked.messages), "messages", info.max_context, info, "messages")
        conversation = read_conversation(asked, self._tokenizer.chat_template)
        tool_use = conversation.tool_use
        if tool_use.tools and self._parsers.syntax is None:
            raise bad_request(
                "tools: this server does not know how this model writes calls; set tool_parser",
                "tools",
            )
        text, token_ids = await self.render(conversation, info)
        if not token_ids:
            raise bad_request("messages: must not be empty", "messages")
        token_ids = _truncated(token_ids, asked, params, info)
        opened = self._parsers.opens_reasoning(text, conversation.continued_text)
        return Prompt(
            token_ids,
            fit_context(params, len(token_ids), info, named=params.max_tokens is not None),
            num_logprobs=asked.prompt_logprobs,
            reports_token_ids=bool(asked.return_token_ids),
            grammar=self._grammar(asked, tool_use, opened),
            parsing=self._parsers.parsing(
                opened=opened,
                names=tool_use.names,
                parallel=tool_use.parallel,
                named=tool_use.mode == "named",
            ),
        )

    def _grammar(self, asked: ChatRequest, use: ToolUse, opened: bool) -> AskedGrammar | None:
        """What the answer must be, behind the reasoning that the prompt has opened."""
        grammar = asked_grammar(asked)
        if use.is_forced:
            if grammar is not None:
                raise bad_request(
                    f"{grammar.param}: cannot be combined with a forced tool_choice", grammar.param
                )
            several = use.parallel and use.mode == "required"
            grammar = AskedGrammar(
                self._parsers.forced_calls(use.tools, several, opened), "tool_choice"
            )
            try:
                check_source(grammar.grammar)
            except RequestError as error:
                raise grammar.refusal(error) from None
        if grammar is not None and opened:
            grammar = grammar.behind(self._parsers.reasoning_end_id)
        return grammar

    async def encode_messages(
        self,
        asked: Sequence[Message],
        info: EngineInfo,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation. Raises ApiError or RequestError 400, as `chat` does."""
        tool_use = ToolUse([dict(tool) for tool in tools or []], "auto")
        check_size(len(asked), "messages", info.max_context, info, "messages")
        messages = read_messages(asked)
        conversation = Conversation(messages, tool_use, add_generation_prompt)
        _, token_ids = await self.render(conversation, info)
        return token_ids

    async def render(self, conversation: Conversation, info: EngineInfo) -> tuple[str, list[int]]:
        """The text of a conversation and its tokens. The template writes BOS itself where the model
        wants one. Raises ApiError or RequestError 400."""
        size = conversation.num_characters
        check_text(size, info, "messages")
        work = size + MESSAGE_CHARACTERS * len(conversation.messages)
        return await self._workers.run(work, partial(self._render, conversation))

    def _render(self, conversation: Conversation) -> tuple[str, list[int]]:
        template = self._tokenizer.chat_template
        if template is None:
            raise bad_request(
                "this model has no chat template; use the completions API", "messages"
            )
        text = template.render(
            conversation.messages,
            conversation.tool_use.tools,
            conversation.add_generation_prompt,
            conversation.continue_final_message,
            **conversation.variables,
        )
        return text, self._tokenizer.encode(text, add_special_tokens=False)

    def _with_bad_words(
        self, params: SamplingParams, words: list[str] | None, info: EngineInfo
    ) -> SamplingParams:
        """Each word is banned as the tokenizer writes it at the start of a text and behind a space.
        Other ways to write it with tokens stay possible."""
        if not words:
            return params
        if len(words) > MAX_BAD_WORDS or not all(0 < len(w) <= MAX_BAD_CHARACTERS for w in words):
            raise bad_request(
                f"bad_words: at most {MAX_BAD_WORDS} words of 1 to {MAX_BAD_CHARACTERS} characters",
                "bad_words",
            )
        spellings = [text for word in words for text in (word, " " + word.lstrip())]
        sequences = {tuple(self._tokenizer.encode(text, False)): None for text in spellings}
        sequences.pop((), None)
        params = replace(params, banned_sequences=tuple(sequences))
        try:
            check_choosable(params, info)
        except RequestError as error:
            raise bad_request(
                str(error).replace("banned_sequences", "bad_words"), "bad_words"
            ) from None
        return params


def token_offsets(
    tokenizer: Tokenizer, token_ids: list[int], text: str, is_text: bool
) -> list[int]:
    """Where each token starts in the text of a prompt, in characters counted from its end.

    Special tokens that a text spells out are part of it; those that the tokenizer put before it,
    and all those of a prompt that was given as ids, take no room.
    """
    stream = TextStream(tokenizer, skip_special_tokens=not is_text)
    decoded = stream.push(token_ids) + stream.finish()
    first = len(decoded) - len(text) if decoded.endswith(text) else 0
    size = len(text)
    return [min(max(offset - first, 0), size) - size for offset in stream.token_offsets]


def echoed_text(messages: Sequence[Message]) -> str:
    """What `echo` gives back of a chat: the last message, if the answer goes on with it."""
    last = messages[-1]
    if last.role != "assistant" or last.content is None:
        return ""
    if isinstance(last.content, str):
        return last.content
    return "".join(part.text or "" for part in last.content)


def _truncated(
    token_ids: list[int], asked: GenerationFields, params: SamplingParams, info: EngineInfo
) -> list[int]:
    """The last `truncate_prompt_tokens` of them; for -1, as many as leave room for max_tokens."""
    keep = asked.truncate_prompt_tokens
    if keep is None:
        return token_ids
    if keep == -1:
        keep = max(context_limit(info) - (params.max_tokens or 1), 1)
    return token_ids[-keep:]


def check_text(num_characters: int, info: EngineInfo, param: str) -> None:
    check_size(num_characters, "characters", MAX_TOKEN_CHARACTERS * info.max_context, info, param)


def prompt_list(
    prompt: str | list[Any] | None, info: EngineInfo, param: str, most: int, slack: int = 1
) -> list[str | list[int]]:
    """A string, token ids, or a list of either, as a list of prompts; `most` of them are worth a
    look. Token ids may be `slack` times as many as the context holds.

    Raises ApiError 400 naming `param`.
    """
    if prompt is None:
        raise bad_request(f"{param}: is required", param)
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise bad_request(f"{param}: must not be empty", param)
    for ids in [prompt, *(one for one in prompt[:most] if isinstance(one, list))]:
        check_size(len(ids), "tokens", max(slack * info.max_context, most), info, param)
    if _is_token_ids(prompt):
        return [prompt]
    if all(isinstance(one, str) for one in prompt):
        return list(prompt)
    if all(isinstance(one, list) and _is_token_ids(one) for one in prompt):
        return list(prompt)
    raise bad_request(
        f"{param}: must be a string, a list of strings, a list of token ids, or a list of such"
        " lists",
        param,
    )


def _is_token_ids(values: list[Any]) -> bool:
    return all(type(value) is int for value in values)
