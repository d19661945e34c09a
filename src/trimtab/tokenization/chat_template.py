"""Chat templates: messages to the text that the model was trained on."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trimtab.errors import CheckpointError, RequestError

if TYPE_CHECKING:
    import jinja2

MAX_REASON = 300
PROBE = "ThePartsOfAMessage"


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

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        `content` of a message is a string, None, or a list of parts {"type": "text", "text": ...};
        a template that cannot render a list gets the parts joined by line breaks. `tools` and
        further `variables` are passed to the template as they are.

        Raises RequestError for messages that the template refuses or cannot render, CheckpointError
        for a template that is wrong, or that does more work than any chat needs.
        """
        source = self.tool_source if tools and self.tool_source is not None else self.source
        checked = [_checked(i, message) for i, message in enumerate(messages)]
        has_parts = any(isinstance(message.get("content"), list) for message in checked)
        if has_parts and not self._renders_parts(source):
            checked = [_joined(message) for message in checked]
        return self._render(source, checked, tools, add_generation_prompt, variables)

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


@functools.lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    import jinja2

    from trimtab.tokenization.template_sandbox import Sandbox, metered

    try:
        with metered():
            return Sandbox().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError(f"chat template, line {error.lineno}: {_one_line(error)}") from None
    except (RecursionError, MemoryError, SyntaxError) as error:
        raise CheckpointError(f"chat template: cannot be compiled: {_one_line(error)}") from None


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
