"""The ladder from the default to the plan, and the roofline of the machine."""

from __future__ import annotations

from trimtab.optimizer.report.formatting import bounds, interval, large, plain, times
from trimtab.optimizer.report.measurements import Interval
from trimtab.optimizer.report.pictures import Picture
from trimtab.optimizer.report.results import Results, Roofline
from trimtab.optimizer.report.svg import WIDTH, Plot, Scale, picture, tag, text

_ROW, _BAR = 38.0, 13.0


def ladder_picture(results: Results) -> Picture:
    """A bar a step: the highest rate that meets the SLO, with its interval and its gain."""
    title = "From the default to the plan"
    rungs = [(one, one.rate) for one in results.ladder if one.rate is not None]
    if not rungs:
        return Picture(
            title, missing="The steps between the default and the plan were not measured."
        )
    most = max(max(rate.value, rate.high or 0.0) for _, rate in rungs)
    room = WIDTH - 150.0  # for the numbers behind the bars
    parts = []
    for i, (rung, rate) in enumerate(rungs):
        top = i * _ROW
        length = room * rate.value / most if most > 0 else 0.0
        class_ = "default" if i == 0 else "chosen" if i == len(rungs) - 1 else "frontier"
        parts.append(text(0.0, top + 12, rung.label, "label"))
        end = max(length, 1.0)
        parts.append(tag("rect", x=0, y=top + 17, width=end, height=_BAR, class_=f"bar {class_}"))
        if rate.low is not None and rate.high is not None and most > 0:
            x1, x2 = room * rate.low / most, room * rate.high / most
            y = top + 17 + _BAR / 2
            parts.append(tag("line", x1=x1, x2=x2, y1=y, y2=y, class_="whisker on-bar"))
            end = max(end, x2)
        gain = f"  {times(rung.gain.value)}" if rung.gain and i else ""
        parts.append(text(end + 7, top + 28, f"{plain(rate.value)}{bounds(rate)}{gain}", "value"))
    description = "; ".join(
        f"{rung.label}: {interval(rate)} requests a second" for rung, rate in rungs
    )
    return Picture(title, picture("".join(parts), description, len(rungs) * _ROW))


def roofline_picture(results: Results) -> Picture:
    title = "What limits the plan on this machine"
    roofline = results.roofline
    if roofline is None or not roofline.read_bytes_per_s:
        return Picture(title, missing="The machine's ceilings were not measured.")
    points = [
        (one.label, one.intensity, one.macs_per_s)
        for one in roofline.points
        if one.intensity and one.macs_per_s and one.intensity > 0 and one.macs_per_s > 0
    ]
    if not points:
        return Picture(title, missing="The plan's own arithmetic and traffic were not measured.")
    bandwidth = roofline.read_bytes_per_s
    roofs = _roofs(roofline)
    corners = [roof / bandwidth for _, roof in roofs]
    x = Scale.of([*(one[1] for one in points), *corners, *(c * 4 for c in corners)], log=True)
    lowest = min(min(one[2] for one in points), x.low * bandwidth)
    y = Scale.of([lowest, *(one[2] for one in points), *(roof for _, roof in roofs)], log=True)
    plot = Plot(x, y, "Multiply-adds a byte read →", "↑ Multiply-adds a second", y_format=large)
    top = max((roof for _, roof in roofs), default=y.high)
    start = max(x.low, y.low / bandwidth)
    plot.line([(start, start * bandwidth), (top / bandwidth, top)], "limit")
    for name, roof in roofs:
        plot.line([(roof / bandwidth, roof), (x.high, roof)], "limit")
        plot.label_end(x.high, roof, f"{name}: {large(roof)}/s", "limit")
    for label, intensity, macs in points:
        ceiling = min(intensity * bandwidth, top)
        said = f"{label}\n{plain(intensity)} multiply-adds a byte\n{large(macs)} multiply-adds/s\n"
        said += f"{macs / ceiling * 100:.0f} % of the ceiling"
        plot.mark("diamond", Interval(intensity), Interval(macs), "chosen", said, label)
    description = f"Roofline: reads {large(bandwidth)}B a second at most. " + "; ".join(
        f"{label}: {large(macs)} multiply-adds a second" for label, _, macs in points
    )
    return Picture(title, plot.svg(description))


def _roofs(roofline: Roofline) -> list[tuple[str, float]]:
    given = roofline.macs_per_s
    if given is None:
        return []
    if isinstance(given, float):
        return [("arithmetic", given)] if given > 0 else []
    return sorted(
        ((name, one) for name, one in given.items() if one and one > 0), key=lambda p: p[1]
    )
