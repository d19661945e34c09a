"""The model families by architecture name. A new family is a new file and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trimtab.errors import CheckpointError
from trimtab.models import gemma2, gemma3, llama, mistral, phi3, qwen2, qwen3
from trimtab.models.config_reader import ConfigReader, show
from trimtab.models.family import Family
from trimtab.models.spec import ModelSpec

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": llama.FAMILY,
    "MistralForCausalLM": mistral.FAMILY,
    "Qwen2ForCausalLM": qwen2.FAMILY,
    "Qwen3ForCausalLM": qwen3.FAMILY,
    "Phi3ForCausalLM": phi3.FAMILY,
    "Gemma2ForCausalLM": gemma2.FAMILY,
    "Gemma3ForCausalLM": gemma3.FAMILY,
    "Gemma3ForConditionalGeneration": gemma3.MULTIMODAL_FAMILY,
}


def architecture_of(config: Mapping[str, Any]) -> str:
    """`architectures[0]`, known to the registry. Raises CheckpointError otherwise."""
    names = config.get("architectures")
    if names is None:
        raise CheckpointError("config.json: architectures is missing")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise CheckpointError(
            f"config.json: architectures = {show(names)}: must be a list of names"
        )
    if names[0] not in FAMILIES:
        raise CheckpointError(
            f"config.json: unknown architecture {show(names[0])} "
            f"(supported: {', '.join(sorted(FAMILIES))})"
        )
    return names[0]


def model_spec(config: Mapping[str, Any], max_context: int = 0) -> ModelSpec:
    """The spec of a parsed config.json.

    `max_context` is the longest context that will be served, 0 for the model's own; it chooses
    the frequencies of ropes that depend on length (dynamic, longrope) and becomes the spec's
    `max_context`. Raises CheckpointError with one line naming what is missing, misshapen or not
    supported, and ConfigError when `max_context` is beyond what the model can serve.
    """
    architecture = architecture_of(config)
    reader = ConfigReader(config)
    reader.ignore("quantization_config")  # of how weights are stored: `trimtab.checkpoints`
    spec = FAMILIES[architecture].parse(reader, max_context)
    reader.finish()
    return replace(spec, architecture=architecture)
