"""trimtab: measure, choose and serve the cheapest way to run a language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trimtab.version import VERSION

if TYPE_CHECKING:
    from trimtab.engine.llm import LLM
    from trimtab.engine.sampling_params import SamplingParams

__version__ = VERSION
__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported when first used: `import trimtab` must not cost numpy.
    if name == "LLM":
        from trimtab.engine.llm import LLM

        return LLM
    if name == "SamplingParams":
        from trimtab.engine.sampling_params import SamplingParams

        return SamplingParams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
