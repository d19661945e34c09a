"""`make_workload`: a preset's name or a file becomes a reproducible stream of requests."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

from trimtab.errors import UserError
from trimtab.workloads.files import workload_from_file
from trimtab.workloads.offering import Load, fitting, number_of_requests, offered, random_numbers
from trimtab.workloads.presets import PRESETS, shape_for
from trimtab.workloads.requests import Workload

MAX_REQUESTS = 5_000_000
MARKS = 16  # tokens of a context that are left to what a tokenizer and a chat template add


def make_workload(
    source: str,
    *,
    rate: float | None = None,
    concurrency: int | None = None,
    duration: float | None = None,
    count: int | None = None,
    seed: int = 0,
    max_context: int = 0,
    scale: float = 1.0,
    burstiness: float | None = None,
) -> Workload:
    """The requests of `source` (a name of `PRESETS`, or a file: users' JSON lines, an Azure CSV
    trace, a Mooncake JSON-lines trace), the same for the same arguments.

    rate: requests a second, those of later turns included, that are offered over the whole load
    (open loop): sessions start at this rate divided by their mean number of turns. concurrency:
    sessions that run at once (closed loop). One of them, but for `batch` (without: all at once) and
    files with times (without: at their own).
    duration: seconds in which sessions start (60 unless `count` says otherwise). count: requests.
    max_context: of the server, tokens (0: any). A conversation, prompts and answers, has MARKS
    less, or an eighth less of a short one: servers add special tokens. Lengths are scaled down
    until 99 % of conversations fit and the others cut, which `description` tells.
    scale: of all lengths but those of users' own texts. burstiness: coefficient of variation of
    the inter-arrival times instead of the preset's arrivals: 0 constant, 1 Poisson, above 1 bursts.
    Raises UserError for what cannot be made, with file and line.
    """
    load = _checked(rate, concurrency, duration, count, burstiness)
    if not (scale > 0 and math.isfinite(scale)):
        raise UserError(f"scale must be a number above 0, not {scale:g}")
    if max_context < 0 or 0 < max_context < 16:
        raise UserError(f"a context of {max_context} tokens is too short for a workload")
    if seed < 0:
        raise UserError(f"seed must be 0 or more, not {seed}")
    max_context -= min(MARKS, max_context // 8)
    if source in PRESETS:
        return _from_preset(source, load, seed, max_context, scale)
    if not Path(source).is_file():
        names = ", ".join(PRESETS)
        what = "is a directory" if Path(source).is_dir() else "no such file"
        raise UserError(f"workload {source!r}: {what}; use {names}, or a file of requests")
    return workload_from_file(Path(source), load, seed, max_context, scale)


def _checked(
    rate: float | None,
    concurrency: int | None,
    duration: float | None,
    count: int | None,
    burstiness: float | None,
) -> Load:
    for name, value in (("rate", rate), ("duration", duration)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UserError(f"{name} must be a number above 0, not {value:g}")
    for name, number in (("concurrency", concurrency), ("count", count)):
        if number is not None and number < 1:
            raise UserError(f"{name} must be at least 1, not {number}")
    if rate is not None and concurrency is not None:
        raise UserError(
            "give a rate (open loop) or a concurrency (closed loop), not both: a load that waits "
            "for answers has no rate of its own"
        )
    if burstiness is not None and not 0 <= burstiness <= 100:
        raise UserError(
            f"burstiness is a coefficient of variation, 0 to 100 (1: Poisson), not {burstiness:g}"
        )
    if rate is None and burstiness is not None:
        raise UserError("burstiness is of an open loop: give a rate with it")
    if concurrency is not None and duration is not None:
        raise UserError(
            "a closed loop (concurrency) lasts as long as the server takes: give a count of "
            "requests instead of a duration"
        )
    if rate is not None and count is not None and duration is not None:
        raise UserError("rate and count make the duration: leave one of the three out")
    if rate is not None and duration is not None and rate * duration > MAX_REQUESTS:
        raise UserError(f"{rate:g} requests/s for {duration:g} s are more than {MAX_REQUESTS:,}")
    if count is not None and count > MAX_REQUESTS:
        raise UserError(f"{count:,} requests are more than {MAX_REQUESTS:,}")
    return Load(rate, concurrency, duration, count, burstiness)


def _from_preset(name: str, load: Load, seed: int, max_context: int, scale: float) -> Workload:
    preset = PRESETS[name]
    if load.rate is None and load.concurrency is None and name != "batch":
        raise UserError(
            f"workload {name!r} needs a rate (requests a second) or a concurrency (at once)"
        )
    shape = shape_for(preset, scale, max_context)
    # Lengths do not depend on the rate, so that two rates are tried with the same requests.
    rng = random_numbers(seed, name, "lengths")
    prefix = f"{name}/{seed}"
    drawn = (preset.session(rng, shape, prefix, number) for number in itertools.count())
    sessions, num_cut = fitting(drawn, number_of_requests(load), max_context)
    arrivals = preset.arrivals
    description = {
        "source": preset.sources(),
        "scale": shape.lengths,
        "turns_scale": shape.turns,
        "max_context": max_context,
        "cut": num_cut,
    }
    return offered(name, sessions, arrivals, load, seed, description)
