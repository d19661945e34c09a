"""Results documents as a search would write them, from a seed and a little queueing model."""

from __future__ import annotations

import math
import random
from typing import Any

SLO = "ttft:p99<300ms+0.3ms*in; itl:p95<60ms; e2e:p95<6s; attainment>=0.99"
HOSTILE = (
    "</script><script>document.title='broken'</script>"
    "<img src=x onerror=\"document.title='broken'\">"
    "{{ 7*7 }} ]]> \x1b[31m ' \" & \u202e \u2028 javascript:alert(1)"
)
_WEIGHTS = {"bf16": (1.0, 1.0, 0.0), "int8": (1.9, 0.995, 0.0011), "int4": (2.9, 0.972, 0.021)}
_KV = {"bf16": (1.0, 1.0), "int8": (1.06, 0.999)}
_SPECULATION = {"off": 1.0, "lookup": 1.12, "auto": 1.34}
_TOKENS = {512: 1.0, 2048: 0.94}
_OURS = ("status", "stage", "id", "chosen", "default", "choice", "closest")


def interval(value: float, share: float = 0.03) -> dict[str, float]:
    return {"value": value, "low": value * (1 - share), "high": value * (1 + share)}


def make_results(
    seed: int = 0, *, num_candidates: int = 24, met: bool = True, rate: float | None = None
) -> dict[str, Any]:
    """A whole document. `met=False`: nothing holds the SLO."""
    chance = random.Random(seed)
    candidates = [_candidate(chance, i, met, limit=rate) for i in range(num_candidates)]
    measured = [one for one in candidates if one["measured"]]
    able = [one for one in measured if one["quality"]["verdict"] == "pass"]
    best = max(able, key=lambda one: one["measured"]["rate"]["value"])
    best["dropped"] = None
    if met:
        _mark_frontier(measured)
    else:
        _break(measured)
    base = candidates[0]["measured"]["rate"]["value"]
    gain = best["measured"]["rate"]["value"] / base if base else 1.0
    return {
        "format": 1,
        "version": {"trimtab": "0.1.0", "numerics": 3, "python": "3.11.2"},
        "created": "2026-11-22T00:40:00Z",
        "seconds": 412.0,
        "command": f"trimtab optimize builtin --workload chat --slo '{SLO}'",
        "model": {
            "name": "builtin",
            "content": "sha256:5f2a9c0e7d1b4a38" * 2,
            "architecture": "LlamaForCausalLM",
            "parameters": 15_300_000,
        },
        "machine": {
            "cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
            "isa": "avx512-vnni-bf16",
            "threads": 2,
            "cores": 2,
            "memory_bytes": 24 << 30,
            "read_bytes_per_s": 2.31e10,
            "macs_per_s": {"bf16": 2.2e11, "int8": 6.1e11, "f32": 1.1e11},
            "noise": 0.031,
            "cores_apart": 0.12,
            "fingerprint": "b81f03e2",
        },
        "need": {
            "slo": SLO,
            "quality": "kl:mean<0.02; top1>=0.98",
            "workload": "chat",
            "workload_description": {"prompt tokens, median": 310, "arrivals": "Poisson"},
            "rate": rate,
            "memory_bytes": None,
            "price_per_hour": 0.1,
            "price_source": "given",
            "objective": "minimize cost",
            "budget_seconds": 600,
        },
        "status": "met" if met else "not met",
        "headline": (
            f"{best['label'].split(',')[0]} weights serve "
            f"{best['measured']['rate']['value']:.1f} requests a second within the SLO, "
            f"{gain:.1f} times the default, at {best['quality']['top1']['value']:.1%} agreement."
            if met
            else "Nothing that was tried holds itl:p95<60ms; the closest plan is 18 % over."
        ),
        "chosen": best["id"] if met else None,
        "default": "c0",
        "plan_path": "plan.yaml",
        "candidates": candidates,
        "ladder": _ladder(candidates[0], best) if met else [],
        "accuracy": _accuracy(chance, measured),
        "roofline": {
            "read_bytes_per_s": 2.31e10,
            "macs_per_s": {"bf16": 2.2e11, "int8": 6.1e11},
            "points": [
                {"label": "decode, 1 stream", "intensity": 1.0, "macs_per_s": 1.84e10},
                {"label": "decode, 16 streams", "intensity": 15.0, "macs_per_s": 1.9e11},
                {"label": "prefill, 512", "intensity": 420.0, "macs_per_s": 4.4e11},
            ],
        },
        "sensitivity": _sensitivity(best, candidates[0]),
        "infeasible": None
        if met
        else {
            "binding": "itl:p95<60ms",
            "closest": best["id"],
            "by": "70 ms instead of 60 ms, 18 % over",
            "relaxations": [
                {"term": "itl:p95<60ms", "asked": 0.06, "would_hold": 0.074, "unit": "s"},
                {"term": "rate>=4rps", "asked": 4.0, "would_hold": 2.8, "unit": "requests/s"},
                {"term": "kl:mean<0.02", "asked": 0.02, "would_hold": 0.024, "unit": ""},
            ],
        },
        "stages": [
            {"name": "probe", "seconds": 6.1, "tried": None, "left": None},
            {"name": "bound", "seconds": 0.2, "tried": 1728, "left": 411},
            {"name": "quality", "seconds": 88.0, "tried": 6, "left": 4},
            {"name": "calibrate", "seconds": 41.0, "tried": 96, "left": None},
            {"name": "simulate", "seconds": 9.3, "tried": 411, "left": 12},
            {"name": "measure", "seconds": 267.0, "tried": 12, "left": 1},
        ],
    }


def _candidate(chance: random.Random, i: int, met: bool, limit: float | None) -> dict[str, Any]:
    weights = list(_WEIGHTS)[i % 3]
    kv = list(_KV)[i // 3 % 2]
    speculation = list(_SPECULATION)[i // 6 % 3]
    tokens = list(_TOKENS)[i // 18 % 2]
    speed, top1, kl = _WEIGHTS[weights]
    slow = 1.0 if met else 0.6
    capacity = 1.9 * slow * speed * _KV[kv][0] * _SPECULATION[speculation] * _TOKENS[tokens]
    capacity *= 1 if i == 0 else chance.uniform(0.93, 1.05)
    top1 *= _KV[kv][1]
    kl += (1 - _KV[kv][1]) * 1.2
    passed = top1 >= 0.98
    stage = "measured" if passed or i in (0, 2, 5) else "simulated"
    if i > 23:
        stage = chance.choice(
            ["bound", "calibrate", "simulated", "simulated", "simulated", "quality"]
        )
    changes = {
        name: value
        for name, value, default in (
            ("weights", weights, "bf16"),
            ("kv_cache", kv, "bf16"),
            ("speculation", speculation, "off"),
            ("max_step_tokens", tokens, 512),
        )
        if value != default
    }
    if i > 23:
        changes["threads"] = chance.choice([1, 2])
        changes["max_running"] = chance.choice([4, 8, 16, 32, 64])
    label = ", ".join(
        [weights, f"KV {kv}", f"speculative {speculation}", f"{tokens} tokens a step"]
    )
    per_output = 0.1 / 3600 / capacity / 150 * 1e6
    quality = {
        "kl_mean": interval(kl, 0.09) if kl else interval(0.0),
        "kl_p99": kl * 21,
        "top1": {"value": top1, "low": top1 - 0.0015, "high": min(1.0, top1 + 0.0015)},
        "ppl_ratio": interval(1 + kl * 0.8, 0.002),
        "tasks": interval(0.86 * top1, 0.012) | {"base": 0.86, "right": 171, "answered": 200},
        "verdict": "pass" if passed else "fail",
        "terms": [
            {"term": "kl:mean<0.02", "met": kl < 0.02, **interval(kl, 0.09), "limit": 0.02},
            {
                "term": "top1>=0.98",
                "met": passed,
                "value": top1,
                "low": top1 - 0.0015,
                "high": min(1.0, top1 + 0.0015),
                "limit": 0.98,
            },
        ],
        "windows": 96,
    }
    reason = None
    if stage == "bound":
        reason = {"stage": "bound", "reason": "its KV cache leaves room for 3 requests, 9 needed"}
    elif stage == "calibrate":
        reason = {"stage": "calibrate", "reason": "the engine process died: out of memory"}
    elif stage == "quality" or (not passed and stage == "simulated"):
        reason = {"stage": "quality", "reason": f"top1>=0.98: {top1:.3f} at best"}
    elif stage == "simulated":
        reason = {"stage": "simulated", "reason": "dominated by a cheaper one in simulation"}
    elif i:
        reason = {"stage": "measured", "reason": "another one is cheaper and as good"}
    predicted = None
    if stage in ("simulated", "measured"):
        wrong = chance.uniform(0.92, 1.08)
        predicted = {
            "rate": capacity * wrong,
            "at_rate": _load(chance, capacity * wrong, capacity * wrong, exact=True)
            if limit is None
            else _load(chance, capacity * wrong, limit, exact=True),
            "cost": {
                "per_million_output": per_output / wrong * 1.6,
                "per_million_input": per_output / wrong * 0.21,
                "per_million_cached": per_output / wrong * 0.011,
                "per_request": 0.1 / 3600 / capacity / wrong,
            },
        }
    measured = None
    if stage == "measured":
        shares = (0.35, 0.6, 0.8, 0.92, 1.0, 1.0, 1.0, 1.12)
        points = [_load(chance, capacity, capacity * share) for share in shares]
        if limit is not None:
            points += [_load(chance, capacity, limit) for _ in range(3)]
        if i == 3:
            points[-1]["valid"] = False
        measured = {
            "rate": interval(capacity, 0.04),
            "repeats": 3,
            "points": points,
            "cost": {
                "per_million_output": interval(per_output * 1.6, 0.04),
                "per_million_input": interval(per_output * 0.21, 0.04),
                "per_million_cached": interval(per_output * 0.011, 0.04),
                "per_request": interval(0.1 / 3600 / capacity, 0.04),
            },
            "energy_joules_per_token": None,
            "cpu_use": 0.93,
            "bandwidth_use": 0.58,
            "arithmetic_use": 0.31,
            "executor_use": 0.88,
            "cached_share": 0.42,
            "rows_per_step": 11.6,
            "preemptions": 0,
            "failed": None,
            "censored_at": None,
        }
    return {
        "id": f"c{i}",
        "label": label,
        "changes": changes,
        "variant": {"weights": weights, "kv_cache": kv},
        "scheduler": {"max_step_tokens": tokens},
        "executor": {"threads": 2},
        "stage": stage,
        "dropped": reason,
        "censored": i == 9,
        "on_frontier": False,
        "quality": None if stage == "bound" else quality,
        "memory": {
            "weights": 31e6 / speed,
            "kv_cache": 2.1e9,
            "activations": 1.4e8,
            "draft": 0,
            "python": 1.6e8,
            "total": 31e6 / speed + 2.4e9,
            "peak_measured": 2.6e9 + 31e6 / speed if measured else None,
        },
        "predicted": predicted,
        "measured": measured,
    }


def _load(
    chance: random.Random, capacity: float, rate: float, *, exact: bool = False
) -> dict[str, Any]:
    """Latencies that grow as 1 / (1 - load), of a server that is full at 1.25 of `capacity`."""
    load = min(0.97, rate / capacity / 1.25)
    wait = 1 / (1 - load) * (1 if exact else chance.uniform(0.97, 1.03))
    ttft, itl = (
        0.045 * wait,
        0.0105 * (1 + 0.75 * load) * (1 if exact else chance.uniform(0.98, 1.02)),
    )
    attainment = 1 / (1 + math.exp((rate / capacity - 1.18) * 26))
    latencies = {
        "ttft": {"p50": ttft, "p95": ttft * 2.1, "p99": ttft * 2.9},
        "itl": {"p50": itl, "p95": itl * 1.9, "p99": itl * 2.7},
        "e2e": {"p50": ttft + 110 * itl, "p95": ttft * 2 + 210 * itl, "p99": ttft * 3 + 300 * itl},
        "tpot": {"mean": itl * 1.08},
        "stall": {"mean": itl * 3, "p50": itl * 2.7, "p95": itl * 5, "p99": None},
    }
    limits = (("ttft:p99<300ms+0.3ms*in", "ttft", "p99", 0.9),
              ("itl:p95<60ms", "itl", "p95", 0.06), ("e2e:p95<6s", "e2e", "p95", 6.0))  # fmt: skip
    terms = [
        {
            "term": term,
            "value": latencies[metric][percentile],
            "limit": bound,
            "attained": interval(min(0.998, attainment), 0.002),
            "bound": attainment * 0.997,
            "proven": metric == "itl" and latencies[metric][percentile] < bound,
            "samples": round(180 * rate),
            "samples_needed": 299,
            "met": latencies[metric][percentile] < bound,
        }
        for term, metric, percentile, bound in limits
    ]
    share = {"value": attainment, "low": attainment * 0.994, "high": min(1, attainment * 1.004)}
    return {
        "rate": rate,
        "seconds": 20.0,
        "achieved": min(rate, capacity * 1.25),
        "goodput": min(rate, capacity * 1.25) * attainment,
        "attainment": share,
        **latencies,
        "output_tokens_per_s": min(rate, capacity * 1.25) * 150,
        "requests": round(180 * rate),
        "valid": True,
        "terms": terms,
        "predicted": None,
    }


def _break(measured: list[dict[str, Any]]) -> None:
    """No rate holds the SLO: every gap between tokens is too long, already at the lowest."""
    for one in measured:
        one["measured"]["rate"] = interval(0.0)
        one["measured"]["cost"] = dict.fromkeys(one["measured"]["cost"])
        for point in one["measured"]["points"]:
            point["itl"] = {key: 2.6 * value for key, value in point["itl"].items()}
            found = point["terms"][1]
            found |= {"value": point["itl"]["p95"], "attained": interval(0.91, 0.01), "met": False}
            point["attainment"] = interval(0.9 - 0.01 * point["rate"], 0.01)
            point["goodput"] = 0.0


def _mark_frontier(measured: list[dict[str, Any]]) -> None:
    for one in measured:
        rate, top1 = one["measured"]["rate"]["value"], one["quality"]["top1"]["value"]
        one["on_frontier"] = not any(
            other["measured"]["rate"]["value"] >= rate
            and other["quality"]["top1"]["value"] >= top1
            and other is not one
            for other in measured
        )


def _ladder(default: dict[str, Any], best: dict[str, Any]) -> list[dict[str, Any]]:
    first, last = (one["measured"]["rate"]["value"] for one in (default, best))
    steps = [("default (bf16)", default["id"], 0.0), ("+ int8 weights", None, 0.55),
             ("+ int8 KV cache", None, 0.66), ("+ speculation, auto", best["id"], 1.0)]  # fmt: skip
    return [
        {
            "label": label,
            "id": id_,
            "rate": interval(first + (last - first) * share, 0.04),
            "gain": (first + (last - first) * share) / (first + (last - first) * before),
        }
        for (label, id_, share), before in zip(steps, (0.0, 0.0, 0.55, 0.66), strict=True)
    ]


def _accuracy(chance: random.Random, measured: list[dict[str, Any]]) -> dict[str, Any]:
    pairs = []
    for one in measured:
        for point in one["measured"]["points"]:
            for metric, value in (
                ("ttft_p50", point["ttft"]["p50"]),
                ("itl", point["itl"]["p50"]),
                ("e2e", point["e2e"]["p50"]),
                ("throughput", point["output_tokens_per_s"]),
            ):
                wrong = chance.gauss(1, 0.11 if metric == "ttft_p50" else 0.05)
                pairs.append(
                    {
                        "id": one["id"],
                        "metric": metric,
                        "predicted": value * wrong,
                        "measured": value,
                    }
                )
    errors: dict[str, list[float]] = {}
    for pair in pairs:
        error = abs(pair["predicted"] / pair["measured"] - 1)
        errors.setdefault(pair["metric"], []).append(error)
    means = {metric: sum(each) / len(each) for metric, each in errors.items()}
    at_pace = {metric: 0.4 * mean for metric, mean in means.items()}
    known = {"steps_held_out": 0.034, "at_pace": at_pace, "pairs": pairs}
    return {"loads": len(pairs) // 4, **means, **known}


def _sensitivity(best: dict[str, Any], default: dict[str, Any]) -> list[dict[str, Any]]:
    rate = best["measured"]["rate"]["value"]

    def case(what: str, share: float, holds: bool = True, note: str = "") -> dict[str, Any]:
        one = best if holds else default
        return {
            "what": what,
            "choice": one["id"],
            "label": one["label"],
            "rate": interval(rate * share, 0.05),
            "holds": holds,
            "note": note,
        }

    return [
        case("price ±50 %", 1.0, note="cost scales with it, and the order stays"),
        case("rate +25 %", 1.0, note="within what it holds"),
        case("rate -25 %", 1.0),
        case("prompts twice as long", 0.61, False, "speculation no longer pays"),
        case(
            "burstier arrivals (cv 3)", 0.74, note="predicted; 11 % less than with Poisson arrivals"
        ),
    ]


def minimal_results() -> dict[str, Any]:
    """What no document can be without."""
    return {"format": 1, "status": "not met", "candidates": []}


def nulled_results() -> dict[str, Any]:
    """Everything that may be null is, of the document and of its candidates."""
    results = make_results(num_candidates=3)
    needed = {"format", "status", "candidates"}
    hollow: dict[str, Any] = {
        key: value if key in needed else None for key, value in results.items()
    }
    hollow["status"] = "not met"
    hollow["candidates"] = [
        {key: value if key == "id" else None for key, value in one.items()}
        for one in results["candidates"]
    ]
    return hollow


def hostile_results() -> dict[str, Any]:
    """Every text that is no identifier of ours is an attack."""

    def poisoned(value: Any, key: str = "") -> Any:
        if isinstance(value, str) and key not in _OURS:
            return f"{value} {HOSTILE}" if key != "metric" else value + HOSTILE
        if isinstance(value, dict):
            return {name: poisoned(one, name) for name, one in value.items()}
        if isinstance(value, list):
            return [poisoned(one, key) for one in value]
        return value

    results: dict[str, Any] = poisoned(make_results(num_candidates=8))
    results["need"]["workload_description"][HOSTILE] = HOSTILE
    results["version"][HOSTILE] = [HOSTILE]
    results["candidates"][0]["changes"][HOSTILE] = {HOSTILE: HOSTILE}
    return results
