"""Typed, one-time reading of a checkpoint's own config.json.

Every value is checked when it is taken. At the end `finish` refuses whatever nobody took and
nobody knows to be harmless: a key that this program does not understand might change the answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from trimtab.errors import CheckpointError

T = TypeVar("T")

MAX_INTEGER = (1 << 31) - 1

# Keys that describe training, tokenization, generation defaults or the tools that wrote the file.
HARMLESS_KEYS = frozenset(
    """
    architectures model_type transformers_version auto_map dtype torch_dtype use_cache
    initializer_range attention_dropout hidden_dropout resid_pdrop embd_pdrop dropout
    pad_token_id sep_token_id decoder_start_token_id tokenizer_class vocab_file
    model_max_length max_sequence_length max_seq_len max_seq_length seq_length pretraining_tp
    return_dict output_hidden_states output_attentions output_router_logits torchscript
    use_bfloat16 chunk_size_feed_forward is_decoder finetuning_task id2label label2id prefix
    task_specific_params problem_type attn_implementation cache_implementation
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    transformers.js_config keys_to_ignore_at_inference gradient_checkpointing is_llama_config
    use_flash_attention_2 use_flash_attn tokenizer_name
    """.split()  # noqa: SIM905
)
HARMLESS_PREFIXES = ("_", "unsloth_")


def show(value: Any) -> str:
    """A value for an error message: one line, short, whatever it contains."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class ConfigReader:
    """A mapping that remembers what was taken from it. `where` opens every error message."""

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self._values = values
        self._taken: set[str] = set()
        self.where = where

    def error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {text}")

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def names(self) -> list[str]:
        return list(self._values)

    def dump(self) -> str:
        """All of it, equal for equal content."""
        return json.dumps(self._values, sort_keys=True)

    def raw(self, name: str) -> Any:
        """The value as it stands, None when absent; counts as taken."""
        self._taken.add(name)
        return self._values.get(name)

    def ignore(self, *names: str) -> None:
        self._taken.update(names)

    def _bad(self, name: str, rule: str) -> CheckpointError:
        return self.error(f"{name} = {show(self._values.get(name))}: must be {rule}")

    def _required(self, name: str, value: T | None) -> T:
        if value is None:
            raise self.error(f"{name} is missing")
        return value

    def optional_integer(
        self, name: str, default: int | None = None, minimum: int = 1, maximum: int = MAX_INTEGER
    ) -> int | None:
        """`default` when the key is absent, None when it is null."""
        value = self.raw(name)
        if name not in self._values:
            return default
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._bad(name, "an integer")
        if not minimum <= value <= maximum:
            raise self._bad(name, f"in [{minimum}, {maximum}]")
        return value

    def integer(
        self, name: str, default: int | None = None, minimum: int = 1, maximum: int = MAX_INTEGER
    ) -> int:
        """`default` when absent or null; without a default the key is required."""
        value = self.optional_integer(name, default, minimum, maximum)
        return self._required(name, default if value is None else value)

    def optional_number(self, name: str, *, positive: bool = True) -> float | None:
        """A finite number, None when absent or null."""
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._bad(name, "a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or (positive and number <= 0):
            raise self._bad(name, "a finite number above 0" if positive else "a finite number")
        return number

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above 0; without a default the key is required."""
        value = self.optional_number(name)
        return self._required(name, default if value is None else value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._bad(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self.raw(name)
        if value is not None and not isinstance(value, str):
            raise self._bad(name, "a string")
        return self._required(name, default if value is None else value)

    def texts(self, name: str, length: int) -> tuple[str, ...] | None:
        """A list of `length` strings, None when absent or null."""
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._bad(name, "a list of strings")
        if len(value) != length:
            raise self.error(f"{name} has {len(value)} entries: must have {length}")
        return tuple(value)

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """A required list of `length` finite numbers above 0."""
        value = self._required(name, self.raw(name))
        if not isinstance(value, list):
            raise self._bad(name, "a list of numbers")
        if len(value) != length:
            raise self.error(f"{name} has {len(value)} entries: must have {length}")
        items = ConfigReader({f"{name}[{i}]": item for i, item in enumerate(value)}, self.where)
        return tuple(items.number(f"{name}[{i}]") for i in range(length))

    def token_ids(self, name: str, vocab_size: int) -> tuple[int, ...]:
        """One id or a list of ids. Ids outside the vocabulary can never occur and are left out."""
        value = self.raw(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in ids):
            raise self._bad(name, "a token id or a list of token ids")
        return tuple(dict.fromkeys(item for item in ids if 0 <= item < vocab_size))

    def section(self, name: str) -> ConfigReader | None:
        """A nested object, None when absent or null. Its reader must be finished as well."""
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._bad(name, "an object")
        return ConfigReader(value, f"{self.where}: {name}")

    def finish(self, harmless: frozenset[str] = HARMLESS_KEYS) -> None:
        """Raises CheckpointError for the first key that was not understood.

        A key that is switched off (null, false or empty) asks for nothing and passes.
        """
        for name in sorted(map(str, self._values)):
            value = self._values.get(name)
            if name in self._taken or name in harmless or name.startswith(HARMLESS_PREFIXES):
                continue
            if value is None or value is False or value in ("", [], {}):
                continue
            raise self.error(
                f"{show(name)} = {show(value)} is not understood and might change the answer; "
                "remove the key if it does not"
            )
