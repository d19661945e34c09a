"""Numbers as people read them: three digits, a unit, the interval behind."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from trimtab.optimizer.report.measurements import Interval

UNKNOWN = "–"
_BYTES = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_LARGE = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
Format = Callable[[float], str]
# Control characters, halves of surrogate pairs, and what turns the direction of text around.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Without characters that would act on the text around them."""
    return _UNSEEN.sub("\ufffd", text)


def plain(value: float, digits: int = 3) -> str:
    """So many significant digits, never in powers of ten."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else UNKNOWN
    rounded = float(f"{value:.{digits - 1}e}")  # 9.996 needs a decimal less than it seems
    decimals = min(12, max(0, digits - 1 - math.floor(math.log10(abs(rounded)))))
    return f"{value:,.{decimals}f}"


def seconds(value: float) -> str:
    """A latency."""
    if abs(value) < 1e-3 and value:
        return f"{plain(value * 1e6, 2)} µs"
    if abs(value) < 0.9995:
        return f"{plain(value * 1e3)} ms"
    return f"{plain(value)} s"


def duration(value: float) -> str:
    """How long something took."""
    if value < 60:
        return seconds(value)
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


LEAST_SHARE = 1e-7  # what is less comes of rounding


def percent(value: float) -> str:
    """A share; more digits near one, where they matter."""
    if value == 1 or 0 <= value < LEAST_SHARE:
        return f"{value * 100:.0f} %"
    if value < 0.1:
        return f"{plain(value * 100, 2)} %"
    return f"{value * 100:.{1 if value < 0.9995 else 2}f} %"


def times(value: float) -> str:
    return f"{value:.2f}×" if value < 9.995 else f"{value:.0f}×"


def num_bytes(value: float) -> str:
    for size, unit in _BYTES:
        if value >= size:
            return f"{plain(value / size)} {unit}"
    return f"{value:.0f} B"


def large(value: float) -> str:
    """With k, M, G or T."""
    for size, letter in _LARGE:
        if abs(value) >= size:
            return f"{plain(value / size)} {letter}"
    return plain(value)


def interval(number: Interval | None, form: Format = plain, *, predicted: bool = False) -> str:
    """`4.1 (3.9–4.3)`; with `~` before a prediction."""
    if number is None:
        return UNKNOWN
    return f"{'~' if predicted else ''}{form(number.value)}{bounds(number, form)}"


def bounds(number: Interval | None, form: Format = plain) -> str:
    """` (3.9–4.3)`, or nothing; in the unit of the value where that is one and the same."""
    if number is None or (number.low is None and number.high is None):
        return ""
    if number.low == number.value == number.high:
        return ""
    if number.low is None or number.high is None:
        known = number.low if number.low is not None else number.high
        assert known is not None
        return f" ({'at least' if number.low is not None else 'at most'} {form(known)})"
    low, high = form(number.low), form(number.high)
    units = {text.partition(" ")[2] for text in (form(number.value), low, high)}
    if len(units) == 1:
        low, high = low.partition(" ")[0], high.partition(" ")[0]
    return f" ({low}–{high})"


def given(value: float) -> str:
    """As the user wrote it."""
    return f"{value:,.12g}"


def tick(text: str) -> str:
    """A number on an axis, without zeros that say nothing."""
    text = re.sub(r"(\.\d*?)0+(?=\D|$)", r"\1", text)
    return re.sub(r"\.(?=\D|$)", "", text)


def optional(value: float | None, form: Format = plain) -> str:
    return UNKNOWN if value is None else form(value)


def relaxed(value: float | str | None, unit: str) -> str:
    """A limit of the need, in its unit."""
    if value is None or isinstance(value, str):
        return value or UNKNOWN
    return seconds(value) if unit == "s" else f"{plain(value)} {unit}".strip()


def setting(value: Any) -> str:
    """A knob's value."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "none"
    if isinstance(value, float):
        return plain(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {setting(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(setting, value))
    return str(value)


def one_line(text: str) -> str:
    """Without what would break it, move the cursor or colour the terminal."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())
