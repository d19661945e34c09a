"""Chat templates: messages to the text that the model was trained on."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trimtab.errors import CheckpointError, RequestError, UserError

if TYPE_CHECKING:
    import jinja2

MAX_REASON = 300
PROBE = "ThePartsOfAMessage"
END = "TheEndOfTheLastMessage "  # the space shows whether a template trims
PROBE_ID = "aProbe123"  # nine letters and digits: Mistral's templates take no other


class ChatTemplate:
    """A Jinja template of a checkpoint, run as transformers runs it, in a sandbox, work bounded.

    `tool_source`, if given, is used for requests that bring tools. `special_tokens` (`bos_token`
    ...) are variables of the template. Compiled when first used. Safe to share between threads.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        tool_source: str | None = None,
    ) -> None:
        self.source = source
        self.tool_source = tool_source
        self.special_tokens = dict(special_tokens or {})
        self._parts_are_rendered: dict[str, bool] = {}  # by source
        self._arguments_are_objects: dict[str, bool] = {}

    @functools.cached_property
    def takes_tools(self) -> bool:
        """Whether tools make a difference to it."""
        return self.tool_source is not None or "tools" in self.variables

    @functools.cached_property
    def variables(self) -> frozenset[str]:
        """What it can be given; nothing for a template that is wrong."""
        sources = [self.source] + ([] if self.tool_source is None else [self.tool_source])
        return frozenset().union(*(_undeclared(source) for source in sources))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        `content` of a message is a string, None, or a list of parts {"type": "text", "text": ...};
        a template that cannot render a list gets the parts joined by line breaks. `arguments` of a
        tool call is JSON text; a template that takes objects gets what it says, if that is one.
        `tools` and further `variables` are passed to the template as they are. With
        `continue_final_message` the text ends with the content of the last message.

        Raises RequestError for messages that the template refuses or cannot render, CheckpointError
        for a template that is wrong, or that does more work than any chat needs.
        """
        source = self.tool_source if tools and self.tool_source is not None else self.source
        checked = [_checked(i, message) for i, message in enumerate(messages)]
        if continue_final_message:
            checked[-1] = _with_end(checked[-1])
        has_parts = any(isinstance(message.get("content"), list) for message in checked)
        if has_parts and not self._renders_parts(source):
            checked = [_joined(message) for message in checked]
        has_calls = any(message.get("tool_calls") for message in checked)
        if has_calls and self._takes_objects(source):
            checked = [_with_objects(message) for message in checked]
        text = self._render(source, checked, tools, add_generation_prompt, variables)
        return _cut_at_end(text) if continue_final_message else text

    def _render(
        self,
        source: str,
        messages: list[dict[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: dict[str, Any],
    ) -> str:
        context = {
            **self.special_tokens,
            "documents": None,
            **variables,
            "messages": messages,
            "tools": tools or None,
            "add_generation_prompt": add_generation_prompt,
        }
        return _render(_compile(source), context)

    def _renders_parts(self, source: str) -> bool:
        """Whether a list of parts comes out as their text: not dropped, not as Python writes a
        list. Found out by trying, once."""
        known = self._parts_are_rendered.get(source)
        if known is None:
            probe = {"role": "user", "content": [{"type": "text", "text": PROBE}]}
            try:
                text = self._render(source, [probe], None, False, {})
            except (RequestError, CheckpointError):
                text = ""
            known = PROBE in text and f"{PROBE}'" not in text and f'{PROBE}"' not in text
            self._parts_are_rendered[source] = known
        return known

    def _takes_objects(self, source: str) -> bool:
        """Whether arguments of a tool call come out as JSON when they are given as an object: not
        as Python writes a dictionary, and not as an error. Found out by trying, once."""
        known = self._arguments_are_objects.get(source)
        if known is None:
            known = False
            for content in ("", None):  # some templates look for calls only where there is none
                try:
                    text = self._render(source, _probe_call(content), None, False, {})
                except (RequestError, CheckpointError):
                    continue
                known = known or (PROBE in text and f"{PROBE}'" not in text)
            self._arguments_are_objects[source] = known
        return known


def _probe_call(content: str | None) -> list[dict[str, Any]]:
    function = {"name": "probe", "arguments": {"key": PROBE}}
    call = {"id": PROBE_ID, "type": "function", "function": function}
    return [
        {"role": "user", "content": "probe"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
    ]


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    """A copy with the arguments of calls as objects, where they are the JSON of one."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = dict(call["function"])
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                arguments = None
        if isinstance(arguments, dict):
            function["arguments"] = arguments
        calls.append({**call, "function": function})
    return {**message, "tool_calls": calls}


def _with_end(message: dict[str, Any]) -> dict[str, Any]:
    """A copy whose content ends with END."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return {**message, "content": content + END}
    parts = [*content[:-1], {**content[-1], "text": content[-1]["text"] + END}]
    return {**message, "content": parts}


def _cut_at_end(text: str) -> str:
    """The text up to END. A template that trims contents has trimmed END, too: then what is before
    it is trimmed as well, as transformers does."""
    at = text.rfind(END.strip())
    if at < 0:
        raise RequestError(
            "the last message cannot be continued: the chat template does not render its content",
            param="messages",
        )
    return text[:at] if text.startswith(END, at) else text[:at].rstrip()


def _checked(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the message with `content` a string, None, a list of text parts, or absent."""
    where = f"messages[{index}]"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RequestError(f"{where}: must be an object with a role", param="messages")
    content = message.get("content")
    if content is None or isinstance(content, str):
        return dict(message)
    if not isinstance(content, list | tuple):
        raise RequestError(f"{where}.content: must be a string or a list", param="messages")
    parts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str) or part.get("type", "text") != "text":
            raise RequestError(
                f"{where}.content: only parts of type text can be served", param="messages"
            )
        parts.append({"type": "text", "text": text})
    return {**message, "content": parts}


def _joined(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": "\n".join(part["text"] for part in content)}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:MAX_REASON] or type(error).__name__


def _require_jinja2() -> None:
    if importlib.util.find_spec("jinja2") is None:
        raise UserError(
            "the package jinja2 is not installed: chat needs it (pip install jinja2), completions "
            "do not"
        )


@functools.lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    _require_jinja2()
    import jinja2

    from trimtab.tokenization.template_sandbox import Sandbox, metered

    try:
        with metered():
            return Sandbox().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError(f"chat template, line {error.lineno}: {_one_line(error)}") from None
    except (RecursionError, MemoryError, SyntaxError) as error:
        raise CheckpointError(f"chat template: cannot be compiled: {_one_line(error)}") from None


def _undeclared(source: str) -> set[str]:
    """The variables that a template takes; none of one that cannot be compiled."""
    _require_jinja2()
    import jinja2.meta

    from trimtab.tokenization.template_sandbox import Sandbox, metered

    try:
        with metered():
            return jinja2.meta.find_undeclared_variables(Sandbox().parse(source))
    except (jinja2.TemplateError, RecursionError, MemoryError, SyntaxError):
        return set()


def _render(template: jinja2.Template, context: dict[str, Any]) -> str:
    import jinja2

    from trimtab.tokenization.template_sandbox import (
        TemplateLimitError,
        TemplateRefusalError,
        metered,
    )

    try:
        with metered():
            return template.render(context)
    except TemplateRefusalError as error:
        raise RequestError(_one_line(error), param="messages") from None
    except TemplateLimitError as error:
        raise CheckpointError(f"chat template: stopped: {_one_line(error)}") from None
    except (jinja2.exceptions.SecurityError, jinja2.TemplateNotFound, TypeError) as error:
        if isinstance(error, TypeError) and "no loader" not in str(error):
            raise _cannot_render(error) from None
        raise CheckpointError(f"chat template: is not allowed: {_one_line(error)}") from None
    except (RecursionError, MemoryError, OverflowError) as error:
        raise CheckpointError(f"chat template: stopped: {_one_line(error)}") from None
    except Exception as error:  # a template is a program: it can fail in any way
        raise _cannot_render(error) from None


def _cannot_render(error: Exception) -> RequestError:
    return RequestError(
        f"the chat template cannot render these messages: {_one_line(error)}", param="messages"
    )
