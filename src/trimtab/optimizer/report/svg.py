"""Scalable pictures without a library: scales, axes, and marks that tell their data on hover.

A picture is 420 units wide, so that its text is readable on a phone and quiet on a desk. Colours
come from the page's style sheet by class; shapes say the same as colours do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from trimtab.optimizer.report.formatting import plain, tick, visible
from trimtab.optimizer.report.measurements import Interval

WIDTH, HEIGHT = 420.0, 280.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 24.0, 40.0
_LETTER = 5.4  # width of a letter of a label, about
_Box = tuple[float, float, float, float]  # left, top, right, bottom
_Spot = tuple[float, float, str]  # where a label stands, and its anchor
_SHAPES = {
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",
    "dot": "M-2.8 0a2.8 2.8 0 1 0 5.6 0a2.8 2.8 0 1 0-5.6 0Z",
    "square": "M-5-5H5V5H-5Z",
    "diamond": "M0-7.5 7.5 0 0 7.5-7.5 0Z",
    "cross": "M-3.5-3.5 3.5 3.5M-3.5 3.5 3.5-3.5",
}


def tag(name: str, content: str = "", **attributes: object) -> str:
    """An element; `content` is markup already, attribute values are escaped here. `class_` and
    `stroke_width` become what they stand for."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(visible(_attribute(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{given}>{content}</{name}>"


def _attribute(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def text(x: float, y: float, content: str, class_: str = "", anchor: str = "start") -> str:
    return tag(
        "text", escape(visible(content)), x=x, y=y, class_=class_ or None, text_anchor=anchor
    )


def shape(name: str, class_: str = "", title: str = "", x: float = 0.0, y: float = 0.0) -> str:
    """A mark, with what it says when it is pointed at. `class_` chooses its colour."""
    said = tag("title", escape(visible(title))) if title else ""
    path = tag("path", d=_SHAPES[name])
    where = f"translate({_attribute(x)} {_attribute(y)})"
    return tag("g", said + path, class_=f"mark {class_}".strip(), transform=where)


@dataclass(frozen=True)
class Scale:
    """Where values stand between 0 and 1, linear or logarithmic."""

    low: float
    high: float
    is_log: bool = False

    @classmethod
    def of(cls, values: Iterable[float | None], *, log: bool = False, zero: bool = False) -> Scale:
        """Around the values, with a little room. `log` where they are above 0."""
        known = [one for one in values if one is not None and (one > 0 or not log)]
        low, high = min(known, default=1.0), max(known, default=1.0)
        if log:
            room = max((high / low) ** 0.07, 1.06)
            return cls(low / room, high * room, True)
        if zero:
            low = min(0.0, low)
        room = (high - low or abs(high) or 1.0) * 0.07
        return cls(low if zero and low == 0 else low - room, high + room)

    @classmethod
    def fitting(cls, values: Iterable[float | None]) -> Scale:
        """Logarithmic where the values span more than a factor of 12, else from zero."""
        known = [one for one in values if one is not None and one >= 0]
        positive = [one for one in known if one > 0]
        log = len(positive) == len(known) > 0 and max(positive) > 12 * min(positive)
        return cls.of(known, log=log, zero=True)

    def at(self, value: float) -> float:
        if self.is_log:
            value = max(value, self.low * 1e-3)
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, about: int = 5) -> list[float]:
        return self._log_ticks() if self.is_log else self._linear_ticks(about)

    def _linear_ticks(self, about: int) -> list[float]:
        rough = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        step = next((power * m for m in (1, 2, 2.5, 5) if power * m >= rough), power * 10)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]

    def _log_ticks(self) -> list[float]:
        decades = math.log10(self.high / self.low)
        if decades < 0.8:
            return self._linear_ticks(5)
        steps = (1, 2, 5) if decades < 2.5 else (1,)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = max(1, round(decades / 6))
        ticks = [s * 10.0**p for p in range(first, last + 1, every) for s in steps]
        inside = [one for one in ticks if self.low <= one <= self.high]
        return inside if len(inside) > 1 else [self.low, self.high]


class Plot:
    """A picture with two axes; marks are drawn in the order in which they are added."""

    def __init__(
        self,
        x: Scale,
        y: Scale,
        x_title: str,
        y_title: str,
        *,
        x_format: Callable[[float], str] = plain,
        y_format: Callable[[float], str] = plain,
        height: float = HEIGHT,
    ) -> None:
        self.x, self.y = x, y
        self.height = height
        self._parts: list[str] = []
        self._taken: list[_Box] = []  # by marks, lines and labels
        self._labels: list[tuple[list[_Spot], str, str]] = []
        self._axes(x_title, y_title, x_format, y_format)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Data to picture, held to the frame."""
        across = min(max(self.x.at(x), 0.0), 1.0)
        up = min(max(self.y.at(y), 0.0), 1.0)
        bottom = self.height - BOTTOM
        return LEFT + across * (WIDTH - LEFT - RIGHT), bottom - up * (bottom - TOP)

    def mark(
        self, name: str, x: Interval, y: Interval, class_: str, title: str, label: str = ""
    ) -> None:
        """A point with its intervals, and a label beside it that covers no other."""
        across, up = self.place(x.value, y.value)
        if x.low is not None and x.high is not None:
            self._whisker(self.place(x.low, y.value), self.place(x.high, y.value), class_)
        if y.low is not None and y.high is not None:
            self._whisker(self.place(x.value, y.low), self.place(x.value, y.high), class_)
        self._parts.append(shape(name, class_, title, across, up))
        self._taken.append((across - 4, up - 4, across + 4, up + 4))
        if label:
            self._label(across, up, label, class_)

    def line(self, points: Sequence[tuple[float, float]], class_: str) -> None:
        placed = [self.place(x, y) for x, y in points]
        if len(placed) > 1:
            path = "M" + "L".join(f"{_attribute(x)} {_attribute(y)}" for x, y in placed)
            self._parts.append(tag("path", d=path, class_=f"line {class_}"))
        for (x1, y1), (x2, y2) in itertools.pairwise(placed):
            steps = max(1, math.ceil(math.hypot(x2 - x1, y2 - y1) / 6))
            for i in range(steps + 1):
                x, y = x1 + (x2 - x1) * i / steps, y1 + (y2 - y1) * i / steps
                self._taken.append((x, y, x, y))

    def level(self, y: float, label: str, class_: str = "limit") -> None:
        """A horizontal line over the whole width, where it is inside the frame."""
        if 0 <= self.y.at(y) <= 1:
            _, up = self.place(self.x.low, y)
            self._parts.append(
                tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=up, y2=up, class_=f"line {class_}")
            )
            right, middle = WIDTH - RIGHT, (LEFT + WIDTH - RIGHT) / 2
            spots: list[_Spot] = [
                (x, y, anchor)
                for y in (up - 4, up + 12)
                for x, anchor in ((right, "end"), (LEFT + 4, "start"), (middle, "middle"))
            ]
            self._labels.append((spots, label, class_))

    def label_end(self, x: float, y: float, label: str, class_: str) -> None:
        """Above or below a line that ends at the right."""
        across, up = self.place(x, y)
        self._labels.append(([(across, up + by, "end") for by in (-4, 12)], label, class_))

    def svg(self, description: str) -> str:
        """The whole picture; `description` says in words what it shows."""
        labels = [self._place_label(*one) for one in self._labels]
        return picture("".join([*self._parts, *labels]), description, self.height)

    def _axes(
        self,
        x_title: str,
        y_title: str,
        x_format: Callable[[float], str],
        y_format: Callable[[float], str],
    ) -> None:
        bottom = self.height - BOTTOM
        for value in self.y.ticks():
            _, up = self.place(self.x.low, value)
            self._parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=up, y2=up, class_="grid"))
            self._parts.append(text(LEFT - 6, up + 3.5, tick(y_format(value)), "tick", "end"))
        last = -math.inf
        for value in self.x.ticks():
            across, _ = self.place(value, self.y.low)
            shown = tick(x_format(value))
            half = len(shown) * _LETTER / 2
            if across - half > last + 6:
                last = across + half
                self._parts.append(text(across, bottom + 15, shown, "tick", "middle"))
        self._parts.append(
            tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="axis")
        )
        self._parts.append(text(WIDTH - RIGHT, self.height - 8, x_title, "title", "end"))
        self._parts.append(text(2.0, 12.0, y_title, "title"))

    def _whisker(self, start: tuple[float, float], end: tuple[float, float], class_: str) -> None:
        (x1, y1), (x2, y2) = start, end
        self._parts.append(tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=f"whisker {class_}"))

    def _label(self, x: float, y: float, label: str, class_: str) -> None:
        spots = [
            (x + 11, y + 4, "start"), (x - 11, y + 4, "end"),
            (x, y - 12, "middle"), (x, y + 19, "middle"),
            (x + 9, y - 10, "start"), (x - 9, y - 10, "end"),
            (x + 9, y + 17, "start"), (x - 9, y + 17, "end"),
        ]  # fmt: skip
        self._labels.append((spots, label, class_))

    def _place_label(self, spots: list[_Spot], label: str, class_: str) -> str:
        """Where it covers least, of the places inside the frame."""
        boxes = [(spot, self._box(*spot, len(label) * _LETTER)) for spot in spots]
        inside = [one for one in boxes if self._is_inside(one[1])] or boxes
        spot, box = min(inside, key=lambda one: sum(_overlap(one[1], b) for b in self._taken))
        self._taken += [box] * 20  # worse to cover than any line
        return text(spot[0], spot[1], label, f"label {class_}", spot[2])

    def _is_inside(self, box: _Box) -> bool:
        left, top, right, bottom = box
        return left >= LEFT and right <= WIDTH and top >= TOP - 8 and bottom <= self.height - BOTTOM

    @staticmethod
    def _box(x: float, y: float, anchor: str, width: float) -> _Box:
        left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        return left, y - 10, left + width, y + 2


def picture(content: str, description: str, height: float) -> str:
    box = f"0 0 {WIDTH:.0f} {_attribute(height)}"
    return tag("svg", content, viewBox=box, role="img", aria_label=description, class_="plot")


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]
