"""The metadata of a GGUF file as the config.json of the same model in Hugging Face layout.

Keys: `gguf.constants` of the gguf package and what llama.cpp's converter writes there. A key that
is not understood here is refused, as in config.json; one that is 0, false or empty is not.

float32 numbers are taken as the shortest decimal that they stand for: 1e-05, not
9.99999974737875e-06. So they are what the model's own config.json said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.checkpoints.gguf_file import GgufFile
from trimtab.errors import CheckpointError
from trimtab.models.config_reader import ConfigReader, show

ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
QUANTIZATION_VERSION = 2

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}

# Of the architecture's own keys: what does not touch the answer, or is known in another way.
_HARMLESS = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned")

# Layers of the models whose attention scale is that of hidden_size / heads and not of head_dim:
# Gemma 2 and Gemma 3 of 27 billion weights. llama.cpp, too, knows them by their depth.
_DEEP = {"gemma2": 46, "gemma3": 62}

# What ends a turn in models whose metadata names but one end token.
LLAMA_ENDS = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
QWEN_ENDS = ("<|im_end|>", "<|endoftext|>")
END_TEXTS = frozenset((*LLAMA_ENDS, *QWEN_ENDS, "<|end|>", "<end_of_turn>"))
CONTROL = 3  # a token type


@dataclass(frozen=True)
class Described:
    """What the metadata says of a model."""

    architecture: str  # llama.cpp's name
    config: dict[str, Any]  # as config.json
    attention_scale: float | None  # where it is given
    rope_tensors: frozenset[str]  # tensors that went into the config


def describe(file: GgufFile, tensors: Mapping[str, GgufFile]) -> Described:
    """`tensors`: of all parts, the file that holds each. Raises CheckpointError."""
    where = str(file.path)
    architecture = architecture_of(file)
    prefix = architecture + "."
    values = {k: _plain(v) for k, v in file.metadata.items() if k.startswith(prefix)}
    reader = ConfigReader(values, where)
    described = _Description(architecture, reader, file.metadata, tensors)
    for name in _HARMLESS:
        reader.ignore(prefix + name)
    for key, value in values.items():
        if value == 0:
            reader.ignore(key)
    reader.finish(frozenset())
    return Described(
        architecture,
        described.config,
        described.attention_scale,
        frozenset(described.rope_tensors),
    )


def architecture_of(file: GgufFile) -> str:
    """Raises CheckpointError for what is no model, or none that is known."""
    kind = file.metadata.get("general.type", "model")
    if kind != "model":
        raise CheckpointError(f"{file.path}: general.type = {show(kind)}: not a model")
    version = file.metadata.get("general.quantization_version", QUANTIZATION_VERSION)
    if version != QUANTIZATION_VERSION:
        raise CheckpointError(
            f"{file.path}: general.quantization_version = {show(version)} is not supported"
        )
    architecture = file.metadata.get("general.architecture")
    if architecture is None:
        raise CheckpointError(f"{file.path}: general.architecture is missing")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{file.path}: unknown architecture {show(architecture)} "
            f"(supported: {', '.join(sorted(ARCHITECTURES))})"
        )
    return architecture


def end_token_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Tokens that end a completion: those that are named, and control tokens whose text says so.

    Values that are no token ids are left out here; `trimtab.tokenization.gguf` refuses them.
    """
    named = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    tokens = metadata.get("tokenizer.ggml.tokens")
    types = metadata.get("tokenizer.ggml.token_type")
    if isinstance(tokens, list) and isinstance(types, np.ndarray) and len(types) == len(tokens):
        controls = np.flatnonzero(types == CONTROL).tolist()
        named += [i for i in controls if tokens[i] in END_TEXTS]
    return tuple(dict.fromkeys(i for i in named if type(i) is int))


def _plain(value: Any) -> Any:
    """As JSON would have it."""
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, float):
        with np.errstate(over="ignore"):
            narrow = np.float32(value)
        return float(str(narrow)) if float(narrow) == value else value
    return value


def from_scale(scale: float) -> float:
    """The scale of attention out of its float32: 1 / sqrt(n) where a whole n gives just that."""
    whole = float(round(scale**-2)) if 1e-6 < scale <= 1 else 0.0
    return whole**-0.5 if whole and np.float32(whole**-0.5) == np.float32(scale) else scale


class _Description:
    def __init__(
        self,
        architecture: str,
        reader: ConfigReader,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, GgufFile],
    ) -> None:
        self._architecture, self._reader = architecture, reader
        self._metadata, self._tensors = metadata, tensors
        self.rope_tensors: set[str] = set()
        self._refuse_what_is_different()
        self.config: dict[str, Any] = {
            "architectures": [ARCHITECTURES[architecture]],
            "tie_word_embeddings": "output.weight" not in tensors,
            "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": list(end_token_ids(metadata)),
            **self._sizes(),
        }
        self.attention_scale = self._attention_scale()
        self._add_rope()
        self._add_windows_and_caps()

    def _raw(self, name: str) -> Any:
        """One value for all layers, None if absent."""
        key = f"{self._architecture}.{name}"
        value = self._reader.raw(key)
        if not isinstance(value, list):
            return value
        if not value or any(item != value[0] for item in value):
            raise self._reader.error(f"{key} differs between layers: not supported")
        return value[0]

    def _integer(self, name: str, minimum: int = 0) -> int | None:
        key = f"{self._architecture}.{name}"
        value = ConfigReader({key: self._raw(name)}, self._reader.where)
        return value.optional_integer(key, minimum=minimum)

    def _size(self, name: str, default: int | None = None) -> int:
        value = self._integer(name, minimum=1)
        value = default if value is None else value
        if value is None:
            raise self._reader.error(f"{self._architecture}.{name} is missing")
        return value

    def _number(self, name: str) -> float | None:
        return self._reader.optional_number(f"{self._architecture}.{name}")

    def _refuse_what_is_different(self) -> None:
        if self._integer("expert_count") or self._integer("expert_used_count"):
            raise self._reader.error("mixture-of-experts models are not supported")
        if not self._reader.flag(f"{self._architecture}.attention.causal", True):
            raise self._reader.error("only causal attention is supported")

    def _sizes(self) -> dict[str, Any]:
        embedding = self._tensors.get("token_embd.weight")
        if embedding is None:
            raise self._reader.error("tensor token_embd.weight is missing")
        heads = self._size("attention.head_count")
        hidden = self._size("embedding_length")
        sizes = {
            "vocab_size": embedding.tensors["token_embd.weight"].shape[0],
            "hidden_size": hidden,
            "intermediate_size": self._size("feed_forward_length"),
            "num_hidden_layers": self._size("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._size("attention.head_count_kv", heads),
            "max_position_embeddings": self._size("context_length"),
            "rms_norm_eps": self._number("attention.layer_norm_rms_epsilon"),
        }
        derived = hidden // heads if hidden % heads == 0 else None
        head_dim = self._size("attention.key_length", derived)
        if self._size("attention.value_length", head_dim) != head_dim:
            raise self._reader.error("keys and values of different lengths are not supported")
        turned = self._size("rope.dimension_count", head_dim)
        if turned < head_dim:
            # A little more than the quotient, for it is multiplied and rounded down again.
            sizes["partial_rotary_factor"] = (turned + 0.25) / head_dim
        elif turned > head_dim:
            raise self._reader.error(f"a rope of {turned} dimensions in heads of {head_dim}")
        return {**sizes, "head_dim": head_dim}

    def _attention_scale(self) -> float | None:
        given = self._number("attention.scale")
        if given is not None:
            return from_scale(given)
        if self._architecture not in _DEEP:
            return None
        deep = self.config["num_hidden_layers"] == _DEEP[self._architecture]
        heads, head_dim = self.config["num_attention_heads"], self.config["head_dim"]
        scalar = self.config["hidden_size"] // heads if deep else head_dim
        scale: float = float(max(1, scalar)) ** -0.5
        return scale

    def _add_windows_and_caps(self) -> None:
        window = None
        if self._architecture not in ("qwen2", "qwen3"):  # there it is not applied
            window = self._integer("attention.sliding_window") or None
        if self._architecture == "llama" and window is not None:
            self.config["architectures"] = ["MistralForCausalLM"]
        if self._architecture != "llama" or window is not None:
            self.config["sliding_window"] = window
        if self._architecture not in ("gemma2", "gemma3"):
            return
        if window is None:
            raise self._reader.error(f"{self._architecture}.attention.sliding_window is missing")
        self.config["query_pre_attn_scalar"] = 1.0  # the scale itself is known, see above
        self._add_pattern()
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            value = self._number(name)
            if value is not None or self._architecture == "gemma3":
                self.config[name] = value

    def _add_pattern(self) -> None:
        """Which layers have the window, where the file says so: a period, or each layer."""
        key = f"{self._architecture}.attention.sliding_window_pattern"
        pattern = self._reader.raw(key)
        layers = self.config["num_hidden_layers"]
        if pattern is None:
            return
        if type(pattern) is int and 0 < pattern <= 1 << 16 and layers <= 1 << 16:
            pattern = [(i + 1) % pattern != 0 for i in range(layers)]
        if not isinstance(pattern, list) or len(pattern) != layers:
            raise self._reader.error(f"{key} = {show(pattern)}: must be a period, or one a layer")
        kinds = ("full_attention", "sliding_attention")
        self.config["layer_types"] = [kinds[bool(item)] for item in pattern]

    def _add_rope(self) -> None:
        theta = self._number("rope.freq_base")
        if self._architecture == "gemma3":
            self.config["rope_local_base_freq"] = self._number("rope.freq_base_swa") or 10_000.0
            theta = theta or 1_000_000.0
        self.config["rope_theta"] = theta or 10_000.0
        scaling = self._rope_scaling()
        if scaling:
            self.config["rope_scaling"] = scaling

    def _rope_scaling(self) -> dict[str, Any]:
        kind = self._reader.text(f"{self._architecture}.rope.scaling.type", "none")
        factor = self._number("rope.scaling.factor")
        original = self._integer("rope.scaling.original_context_length") or None
        amplitude = self._number("rope.scaling.attn_factor")
        if LONG_FACTORS in self._tensors or SHORT_FACTORS in self._tensors:
            return self._longrope(original, amplitude)
        if ROPE_FACTORS in self._tensors and kind == "none":
            factors = self._factors(ROPE_FACTORS)
            self._plain_amplitude(amplitude)
            same = {"short_factor": factors, "long_factor": factors, "attention_factor": 1.0}
            return {"rope_type": "longrope", **same}
        if kind == "linear" and factor is not None:
            self._plain_amplitude(amplitude)
            return {"rope_type": "linear", "factor": factor}
        if kind == "yarn" and factor is not None:
            return self._yarn(factor, original, amplitude)
        if kind != "none":
            raise self._reader.error(
                f"{self._architecture}.rope.scaling.type = {show(kind)} is not supported "
                "without its numbers"
            )
        self._plain_amplitude(amplitude)
        return {}

    def _plain_amplitude(self, amplitude: float | None) -> None:
        if amplitude not in (None, 1.0):
            key = f"{self._architecture}.rope.scaling.attn_factor"
            raise self._reader.error(f"{key} = {amplitude}: not supported with this rope scaling")

    def _longrope(self, original: int | None, amplitude: float | None) -> dict[str, Any]:
        scaling: dict[str, Any] = {
            "rope_type": "longrope",
            "short_factor": self._factors(SHORT_FACTORS),
            "long_factor": self._factors(LONG_FACTORS),
        }
        if original is not None:  # where Phi-3 has it
            self.config["original_max_position_embeddings"] = original
        positions = self.config["max_position_embeddings"]
        if amplitude is not None and original is not None and original > 1:
            factor = max(1.0, positions / original)
            usual = math.sqrt(1 + math.log(factor) / math.log(original))
            if np.float32(usual) == np.float32(amplitude):
                amplitude = None  # what the family takes when nothing is said, in float64
        if amplitude is not None:
            scaling["attention_factor"] = amplitude
        return scaling

    def _yarn(self, factor: float, original: int | None, amplitude: float | None) -> dict[str, Any]:
        scaling: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
        if original is not None:
            scaling["original_max_position_embeddings"] = original
        for name in ("beta_fast", "beta_slow"):
            value = self._number(f"rope.scaling.yarn_{name}")
            if value is not None:
                scaling[name] = value
        own = self._number("rope.scaling.yarn_attn_factor")
        if own is not None:  # what the converter makes of attention_factor
            scaling["attention_factor"] = own
        self._plain_amplitude(amplitude)
        extrapolation = self._number("rope.scaling.yarn_ext_factor")
        if extrapolation not in (None, 1.0):
            raise self._reader.error(f"a yarn_ext_factor of {extrapolation} is not supported")
        return scaling

    def _factors(self, name: str) -> list[float]:
        """A tensor of factors that the frequencies are divided by."""
        file = self._tensors.get(name)
        if file is None:
            raise self._reader.error(f"tensor {name} is missing")
        tensor = file.tensors[name]
        if tensor.block.name != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > 1 << 16:
            raise CheckpointError(f"{file.path}: tensor {name} must be F32 and one-dimensional")
        self.rope_tensors.add(name)
        values = np.frombuffer(file.read(name, 0, tensor.end - tensor.start), "<f4")
        return [float(str(value)) for value in values]
