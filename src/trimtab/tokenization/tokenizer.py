"""Tokenizer: a model's own mapping between text and token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.errors import RequestError
from trimtab.tokenization.chat_template import ChatTemplate
from trimtab.tokenization.vocabulary import Vocabulary


class Tokenizer:
    """Made by `load_tokenizer`. Immutable and safe to share between threads.

    `backend` is a `tokenizers.Tokenizer` without truncation and padding. `special_tokens` maps the
    names that templates know (`bos_token` ...) to their texts.
    """

    def __init__(
        self,
        backend: Any,
        special_tokens: Mapping[str, str],
        eos_token_ids: Sequence[int],
        chat_template: ChatTemplate | None = None,
    ) -> None:
        self._backend = backend
        self.vocabulary = Vocabulary(backend)
        self.special_tokens = dict(special_tokens)
        self.eos_token_ids = tuple(eos_token_ids)  # any of them ends a completion
        self.chat_template = chat_template

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id. A model's own vocabulary may be padded beyond it."""
        return self.vocabulary.size

    @property
    def special_ids(self) -> frozenset[int]:
        return self.vocabulary.special_ids

    @property
    def bos_token_id(self) -> int | None:
        bos = self.special_tokens.get("bos_token")
        return None if bos is None else self.token_to_id(bos)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. With `add_special_tokens`, what the model's own tokenizer puts
        around a text (usually a BOS token). Texts of special tokens become those tokens.

        Raises RequestError for text that is not valid Unicode (lone surrogates).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the text has a lone surrogate at character {error.start}: not valid Unicode"
            ) from None
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of the ids; ids that no token has add nothing. Invalid UTF-8 becomes U+FFFD."""
        return self.vocabulary.decode(self.vocabulary.visible(token_ids, skip_special_tokens))

    def token_to_id(self, token: str) -> int | None:
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    def id_to_token(self, token_id: int) -> str | None:
        """The token as the tokenizer writes it (`Ġhello`, `▁hello`, `<0x0A>`)."""
        return self.vocabulary.piece(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that the token adds in the middle of a text, maybe only a part of a
        character; of a special token, its own text. Empty for an id that no token has."""
        return self.vocabulary.token_bytes(token_id)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a conversation, rendered by the chat template. The template writes BOS
        itself where the model wants one, so none is added.

        Raises RequestError if there is no template or it refuses the messages.
        """
        if self.chat_template is None:
            raise RequestError(
                "this model has no chat template; use the completions API", param="messages"
            )
        text = self.chat_template.render(messages, tools, add_generation_prompt, **variables)
        return self.encode(text, add_special_tokens=False)
