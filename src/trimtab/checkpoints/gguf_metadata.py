"""What llama.cpp's converter writes about a model, from its config.json and its ModelSpec.

`describe_model` refuses, in one line, what the GGUF architecture of a family has no words for.
What our own reader understands and llama.cpp does not is written too, and said in the notes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.checkpoints.gguf_writer import Value
from trimtab.errors import CheckpointError
from trimtab.models.config_reader import show
from trimtab.models.spec import ModelSpec

QUANTIZATION_VERSION = 2

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Phi3ForCausalLM": "phi3",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Gemma3ForConditionalGeneration": "gemma3",
}
_PERIODS = {
    "gemma2": 2,
    "gemma3": 6,
}  # every such layer sees the whole context, as llama.cpp has it
_DEEP = {"gemma2": 46, "gemma3": 62}  # layers of the models that scale attention by hidden / heads


@dataclass
class Description:
    metadata: dict[str, Value] = field(default_factory=dict)
    tensors: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)  # rope factors
    notes: list[str] = field(default_factory=list)


def describe_model(spec: ModelSpec, config: Mapping[str, Any], where: str) -> Description:
    """`config` is the model's config.json. Raises CheckpointError, opened by `where`."""
    text = config.get("text_config")
    return _Describer(spec, text if isinstance(text, dict) else config, where).result


class _Describer:
    def __init__(self, spec: ModelSpec, config: Mapping[str, Any], where: str) -> None:
        self._spec, self._config, self._where = spec, config, where
        self._name = ARCHITECTURES[spec.architecture]
        self.result = Description()
        self._add_sizes()
        self._add_windows()
        self._add_attention()
        self._add_rope()

    def _error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self._where}: GGUF has no words for {text}")

    def _put(self, key: str, kind: str, value: object) -> None:
        self.result.metadata[f"{self._name}.{key}"] = Value(kind, value)

    def _add_sizes(self) -> None:
        spec = self._spec
        head = {
            "general.architecture": Value("string", self._name),
            "general.type": Value("string", "model"),
            "general.quantization_version": Value("u32", QUANTIZATION_VERSION),
        }
        self.result.metadata.update(head)
        context = self._config.get("max_position_embeddings", spec.max_context)
        self._put("vocab_size", "u32", spec.vocab_size)
        self._put("context_length", "u32", int(context))
        self._put("embedding_length", "u32", spec.hidden_size)
        self._put("block_count", "u32", spec.num_layers)
        self._put("feed_forward_length", "u32", spec.intermediate_size)
        self._put("attention.head_count", "u32", spec.num_heads)
        self._put("attention.head_count_kv", "u32", spec.num_kv_heads)
        self._put("attention.key_length", "u32", spec.head_dim)
        self._put("attention.value_length", "u32", spec.head_dim)
        self._put("attention.layer_norm_rms_epsilon", "f32", spec.norm_eps)
        if (spec.mlp_bias or spec.output_bias) and self._name != "llama":
            raise self._error(f"biases of attention or MLP in {self._name}")
        if spec.qkv_bias and self._name not in ("llama", "qwen2", "qwen3"):
            raise self._error(f"biases of q, k, v in {self._name}")

    def _add_windows(self) -> None:
        windows = [layer.sliding_window for layer in self._spec.layers]
        sizes = {window for window in windows if window}
        if self._name in ("qwen2", "qwen3") and sizes:
            raise self._error(f"the sliding windows of {self._spec.architecture}")
        if len(sizes) > 1:
            raise self._error("windows of several sizes")
        if self._name in _PERIODS:
            self._put("attention.sliding_window", "u32", self._gemma_window(sizes))
            period = _PERIODS[self._name]
            pattern = [self._is_local(i) for i in range(len(windows))]
            if pattern != [(i + 1) % period != 0 for i in range(len(windows))]:
                self._put("attention.sliding_window_pattern", "bool", pattern)
                self._note("which layers have a sliding window: it assumes its own pattern")
        elif self._name == "phi3":
            self._put(
                "attention.sliding_window", "u32", int(self._config.get("sliding_window") or 0)
            )
        elif sizes:
            self._put("attention.sliding_window", "u32", sizes.pop())
            self._note("the sliding window of llama models: beyond it, it computes otherwise")

    def _gemma_window(self, sizes: set[int]) -> int:
        return sizes.pop() if sizes else int(self._config.get("sliding_window") or 4096)

    def _is_local(self, layer: int) -> bool:
        """Also where the window spans the whole context, and the spec no longer has it."""
        types = self._config.get("layer_types")
        if types is not None:
            return bool(types[layer] == "sliding_attention")
        if len(self._spec.ropes) == 2:
            return self._spec.layers[layer].rope == 1
        return (layer + 1) % _PERIODS[self._name] != 0

    def _note(self, what: str) -> None:
        self.result.notes.append(f"llama.cpp does not read {what}")

    def _add_attention(self) -> None:
        spec = self._spec
        for key, cap in (
            ("attn_logit_softcapping", spec.attention_softcap),
            ("final_logit_softcapping", spec.logits_softcap),
        ):
            if cap and self._name != "gemma2":
                raise self._error(f"soft caps in {self._name}")
            if cap:
                self._put(key, "f32", cap)
        if self._name == "gemma2" and not (spec.attention_softcap and spec.logits_softcap):
            raise self._error("a Gemma 2 without soft caps")
        deep = spec.num_layers == _DEEP.get(self._name)
        usual = spec.hidden_size // spec.num_heads if deep else spec.head_dim
        if not math.isclose(spec.attention_scale, usual**-0.5, rel_tol=1e-6):
            self._put("attention.scale", "f32", spec.attention_scale)
            self._note("the scale of attention of this model: it takes the usual one")

    def _add_rope(self) -> None:
        spec, config = self._spec, self._config
        section = config.get("rope_parameters") or config.get("rope_scaling") or {}
        theta = section.get("rope_theta", config.get("rope_theta"))
        if self._name == "gemma3":
            section, theta = self._gemma_ropes(section)
        rope = spec.ropes[0]
        self._put("rope.dimension_count", "u32", rope.rotary_dim)
        self._put("rope.freq_base", "f32", float(theta if theta is not None else 10_000.0))
        kind = section.get("rope_type", section.get("type", "default"))
        if self._name == "phi3" and kind in ("su", "yarn"):
            kind = "longrope"
        add = {
            "default": lambda section: None,
            "linear": self._linear,
            "llama3": self._llama3,
            "yarn": self._yarn,
            "longrope": self._longrope,
        }.get(kind)
        if add is None or (kind == "longrope") != (self._name == "phi3" and kind != "default"):
            raise self._error(f"the rope scaling {show(kind)} of {spec.architecture}")
        add(section)

    def _gemma_ropes(self, section: Mapping[str, Any]) -> tuple[Mapping[str, Any], object]:
        """The global rope; the local one is assumed to have a base of 10,000 and no scaling."""
        local = section.get("sliding_attention", {})
        base = local.get("rope_theta", self._config.get("rope_local_base_freq", 10_000.0))
        if local.get("rope_type", "default") != "default":
            raise self._error("a local rope with a scaling")
        self._put("rope.freq_base_swa", "f32", float(base))
        if float(base) != 10_000.0:
            self._note(f"the base of the local rope ({base:g}) in all its versions")
        outer = section.get("full_attention", section)
        theta = outer.get("rope_theta", self._config.get("rope_theta", 1e6))
        return outer, theta

    def _linear(self, section: Mapping[str, Any]) -> None:
        self._put("rope.scaling.type", "string", "linear")
        self._put("rope.scaling.factor", "f32", float(section["factor"]))

    def _llama3(self, section: Mapping[str, Any]) -> None:
        """A table of what divides each frequency."""
        theta = float(section.get("rope_theta", self._config.get("rope_theta", 10_000.0)))
        rope = self._spec.ropes[0]
        plain = theta ** (-np.arange(0, rope.rotary_dim, 2, dtype=np.float64) / rope.rotary_dim)
        self.result.tensors["rope_freqs.weight"] = (plain / np.array(rope.inv_freq)).astype("<f4")

    def _yarn(self, section: Mapping[str, Any]) -> None:
        if any(section.get(name) is not None for name in ("mscale", "mscale_all_dim")):
            raise self._error("the mscale of a YaRN rope")
        if section.get("truncate") is False:
            raise self._error("a YaRN rope without truncation")
        original = self._original(section)
        maximum = float(self._config.get("max_position_embeddings", original))
        self._put("rope.scaling.type", "string", "yarn")
        self._put("rope.scaling.factor", "f32", float(section.get("factor") or maximum / original))
        self._put("rope.scaling.original_context_length", "u32", original)
        for name in ("beta_fast", "beta_slow"):
            if section.get(name) is not None:
                self._put(f"rope.scaling.yarn_{name}", "f32", float(section[name]))
        if section.get("attention_factor") is not None:
            self._put("rope.scaling.yarn_attn_factor", "f32", float(section["attention_factor"]))

    def _longrope(self, section: Mapping[str, Any]) -> None:
        original = self._original(section)
        self._put("rope.scaling.original_context_length", "u32", original)
        self._put("rope.scaling.attn_factor", "f32", self._spec.ropes[0].amplitude)
        for name in ("long", "short"):
            factors = np.array(section[f"{name}_factor"], "<f4")
            self.result.tensors[f"rope_factors_{name}.weight"] = factors

    def _original(self, section: Mapping[str, Any]) -> int:
        key = "original_max_position_embeddings"
        value = self._config.get(key) or section.get(key)
        default = 4096 if self._name == "phi3" else self._config.get("max_position_embeddings")
        return int(value or default or self._spec.max_context)
