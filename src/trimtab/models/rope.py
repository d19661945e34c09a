"""Rotary embedding scalings of Hugging Face configs, folded into RopeSpec.

Two generations are read: `rope_theta` beside `rope_scaling` (transformers 4), and
`rope_parameters` that holds both (transformers 5). The kinds, by their `rope_type`:

    default    Su et al. 2021, arXiv:2104.09864
    linear     position interpolation, arXiv:2306.15595
    dynamic    NTK-aware base; here the base is the one for the whole context, see below
    llama3     Llama 3.1: long wavelengths interpolated, short ones kept
    yarn       Peng et al. 2023, arXiv:2309.00071
    longrope   Ding et al. 2024, arXiv:2402.13753 ("su" is its older name)

dynamic and longrope let the length of the sequence choose the frequencies, so that the same
prefix would have other keys in a longer text. Here the choice is made once, at load, by the
longest context that will be served: an answer depends on the configuration, never on the course
of a conversation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from trimtab.models.config_reader import MAX_INTEGER, ConfigReader
from trimtab.models.spec import RopeSpec


@dataclass(frozen=True)
class RopeInputs:
    """What the model says about positions outside the scaling itself."""

    theta: float
    dim: int  # rotary dimension: how much of a head turns
    max_positions: int  # max_position_embeddings
    original_positions: int | None  # original_max_position_embeddings beside the scaling, if any
    max_context: int  # the longest context that will be served; 0 = the default


@dataclass(frozen=True)
class FoldedRope:
    rope: RopeSpec
    default_context: int  # positions that the model serves unless told otherwise
    context_limit: int  # positions that it can be told to serve


def read_rope(
    config: ConfigReader,
    *,
    head_dim: int,
    max_positions: int,
    max_context: int,
    default_theta: float = 10_000.0,
    allow_partial: bool = False,
    default_original: int | None = None,
    renamed_kinds: dict[str, str] | None = None,
) -> FoldedRope:
    """The model's only rope, from either generation of config.

    `allow_partial`: the family turns only the first `partial_rotary_factor` of each head.
    `default_original`: what a missing original_max_position_embeddings means.
    `renamed_kinds`: names under which this family's older files know a kind.
    """
    section = scaling_section(config)
    theta = config.optional_number("rope_theta")
    partial = config.optional_number("partial_rotary_factor")
    inputs = RopeInputs(
        theta=default_theta if theta is None else theta,
        dim=rotary_dim(section, head_dim, partial, allow_partial),
        max_positions=max_positions,
        original_positions=config.optional_integer(
            "original_max_position_embeddings", default_original
        ),
        max_context=max_context,
    )
    return fold_rope(section, inputs, renamed_kinds)


def scaling_section(config: ConfigReader) -> ConfigReader:
    """The scaling object of either generation; an empty one when there is none."""
    old, new = config.section("rope_scaling"), config.section("rope_parameters")
    if (
        old is not None
        and new is not None
        and config.raw("rope_scaling") != config.raw("rope_parameters")
    ):
        raise config.error("rope_scaling and rope_parameters are both given and differ")
    return new or old or ConfigReader({}, f"{config.where}: rope_parameters")


def rotary_dim(
    section: ConfigReader, head_dim: int, outer_partial: float | None, allow_partial: bool
) -> int:
    inner_partial = section.optional_number("partial_rotary_factor")
    partial = inner_partial if inner_partial is not None else outer_partial
    if partial is None:
        partial = 1.0
    if partial != 1.0 and not allow_partial:
        raise section.error(f"partial_rotary_factor = {partial} is not supported by this family")
    dim = int(head_dim * partial)
    if not 2 <= dim <= head_dim or dim % 2:
        raise section.error(f"a rotary dimension of {dim} is not an even part of a {head_dim} head")
    return dim


def fold_rope(
    section: ConfigReader, inputs: RopeInputs, renamed_kinds: dict[str, str] | None = None
) -> FoldedRope:
    """One scaling object to a RopeSpec. Raises CheckpointError for what is not understood."""
    older_name = section.text("type", "default")
    kind = section.text("rope_type", older_name)
    kind = (renamed_kinds or {}).get(kind, kind)
    fold = _KINDS.get(kind)
    if fold is None:
        raise section.error(f"unknown rope type {kind!r} (known: {', '.join(sorted(_KINDS))})")
    theta = section.number("rope_theta", inputs.theta)
    if theta <= 1:
        raise section.error(f"rope_theta = {theta}: must be above 1")
    own = section.optional_integer("original_max_position_embeddings")
    original = inputs.original_positions or own
    inputs = RopeInputs(theta, inputs.dim, inputs.max_positions, original, inputs.max_context)
    try:
        folded = fold(section, inputs)
    except (ArithmeticError, ValueError):
        raise section.error(f"these numbers have no {kind} scaling: out of range") from None
    if not all(math.isfinite(value) and value > 0 for value in folded.rope.inv_freq):
        raise section.error(f"{kind} scaling gives frequencies that are not finite and positive")
    if not (math.isfinite(folded.rope.amplitude) and folded.rope.amplitude > 0):
        raise section.error(f"{kind} scaling gives an amplitude of {folded.rope.amplitude}")
    if folded.default_context > MAX_INTEGER:
        raise section.error(f"{kind} scaling gives a context of more than {MAX_INTEGER} tokens")
    section.ignore("finetuned")  # written by YaRN's authors; nothing reads it
    section.finish(frozenset())
    return folded


def _frequencies(theta: float, dim: int) -> list[float]:
    return [theta ** (-2 * i / dim) for i in range(dim // 2)]


def _plain(inv_freq: list[float], context: int, limit: int, amplitude: float = 1.0) -> FoldedRope:
    limit = min(max(context, limit), MAX_INTEGER)
    return FoldedRope(RopeSpec(tuple(inv_freq), amplitude), context, limit)


def _default(section: ConfigReader, inputs: RopeInputs) -> FoldedRope:
    section.ignore("factor")  # means nothing without a scaling
    return _plain(_frequencies(inputs.theta, inputs.dim), inputs.max_positions, 0)


def _linear(section: ConfigReader, inputs: RopeInputs) -> FoldedRope:
    factor = section.number("factor")
    inv_freq = [value / factor for value in _frequencies(inputs.theta, inputs.dim)]
    # Files disagree on whether max_position_embeddings already counts the factor.
    return _plain(inv_freq, inputs.max_positions, int(inputs.max_positions * factor))


def _dynamic(section: ConfigReader, inputs: RopeInputs) -> FoldedRope:
    factor = section.number("factor")
    dim, trained = inputs.dim, inputs.max_positions
    if dim < 4:
        raise section.error(f"dynamic scaling needs a rotary dimension above 2, not {dim}")
    context = max(inputs.max_context, trained)
    stretch = factor * context / trained - (factor - 1)
    theta = inputs.theta * stretch ** (dim / (dim - 2))
    return _plain(_frequencies(theta, dim), trained, int(trained * factor))


def _llama3(section: ConfigReader, inputs: RopeInputs) -> FoldedRope:
    factor = section.number("factor")
    low = section.number("low_freq_factor")
    high = section.number("high_freq_factor")
    if high <= low:
        raise section.error(f"high_freq_factor = {high}: must be above low_freq_factor = {low}")
    original = inputs.original_positions or inputs.max_positions
    inv_freq = []
    for value in _frequencies(inputs.theta, inputs.dim):
        turns = original * value / (2 * math.pi)  # full turns within the original context
        keep = min(1.0, max(0.0, (turns - low) / (high - low)))
        inv_freq.append((1 - keep) * value / factor + keep * value)
    return _plain(inv_freq, inputs.max_positions, 0)


def _yarn(section: ConfigReader, inputs: RopeInputs) -> FoldedRope:
    dim = inputs.dim
    original = inputs.original_positions or inputs.max_positions
    factor = section.number("factor", inputs.max_positions / original)
    amplitude = section.optional_number("attention_factor")
    mscale = section.optional_number("mscale", positive=False)
    mscale_all_dim = section.optional_number("mscale_all_dim", positive=False)
    if amplitude is None:
        amplitude = _yarn_amplitude(factor, 1.0)
        if mscale and mscale_all_dim:
            amplitude = _yarn_amplitude(factor, mscale) / _yarn_amplitude(factor, mscale_all_dim)

    def dimension_of(turns: float) -> float:
        """The (fractional) pair that makes this many full turns in the original context."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(inputs.theta))

    first = dimension_of(section.number("beta_fast", 32.0))
    last = dimension_of(section.number("beta_slow", 1.0))
    if section.flag("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    if first == last:
        last += 0.001  # a step instead of a ramp, without a division by zero
    inv_freq = []
    for i, value in enumerate(_frequencies(inputs.theta, dim)):
        ramp = min(1.0, max(0.0, (i - first) / (last - first)))
        inv_freq.append(ramp * value / factor + (1 - ramp) * value)
    context = max(inputs.max_positions, int(original * factor))
    return _plain(inv_freq, context, 0, amplitude)


def _yarn_amplitude(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(section: ConfigReader, inputs: RopeInputs) -> FoldedRope:
    pairs = inputs.dim // 2
    short = section.numbers("short_factor", pairs)
    long = section.numbers("long_factor", pairs)
    original = inputs.original_positions or inputs.max_positions
    if original < 2:
        raise section.error(f"original_max_position_embeddings = {original}: must be at least 2")
    factor = section.number("factor", inputs.max_positions / original)
    amplitude = section.optional_number("attention_factor")
    if amplitude is None:
        amplitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    context = inputs.max_context or inputs.max_positions
    chosen = long if context > original else short
    base = _frequencies(inputs.theta, inputs.dim)
    inv_freq = [value / scale for value, scale in zip(base, chosen, strict=True)]
    return _plain(inv_freq, inputs.max_positions, 0, amplitude)


_KINDS: dict[str, Callable[[ConfigReader, RopeInputs], FoldedRope]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,
}
