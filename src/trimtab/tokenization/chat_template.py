"""Chat templates: messages to the text that the model was trained on."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trimtab.errors import CheckpointError, RequestError

if TYPE_CHECKING:
    import jinja2

# A template that asks what kind of value `content` is can render a list of parts by itself.
_ASKS_FOR_KIND = re.compile(r"content['\"\]\s]*\bis\s+(not\s+)?(string|iterable|sequence|mapping)")
MAX_REASON = 300


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

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        `content` of a message is a string, None, or a list of parts {"type": "text", "text": ...};
        a template that does not ask which gets the parts joined by line breaks. `tools` and further
        `variables` are passed to the template as they are.

        Raises RequestError for messages that the template refuses or cannot render, CheckpointError
        for a template that is wrong, or that does more work than any chat needs.
        """
        source = self.tool_source if tools and self.tool_source is not None else self.source
        takes_parts = _ASKS_FOR_KIND.search(source) is not None
        context = {
            **self.special_tokens,
            "documents": None,
            **variables,
            "messages": [_message(i, message, takes_parts) for i, message in enumerate(messages)],
            "tools": tools or None,
            "add_generation_prompt": add_generation_prompt,
        }
        return _render(_compile(source), context)


def _message(index: int, message: Mapping[str, Any], takes_parts: bool) -> dict[str, Any]:
    """The message as the template shall see it."""
    where = f"messages[{index}]"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RequestError(f"{where}: must be an object with a role", param="messages")
    content = message.get("content")
    if content is None or isinstance(content, str):
        return dict(message)
    if not isinstance(content, list | tuple):
        raise RequestError(f"{where}.content: must be a string or a list", param="messages")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str) or part.get("type", "text") != "text":
            raise RequestError(
                f"{where}.content: only parts of type text can be served", param="messages"
            )
        texts.append(text)
    parts = [{"type": "text", "text": text} for text in texts]
    return {**message, "content": parts if takes_parts else "\n".join(texts)}


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
