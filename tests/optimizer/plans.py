"""Plans for tests."""

from __future__ import annotations

from dataclasses import replace

from trimtab.checkpoints import open_checkpoint, resolve_model
from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.optimizer.content import content_hash
from trimtab.optimizer.fingerprint import this_machine, versions
from trimtab.optimizer.plan import Measurement, Plan, now
from trimtab.optimizer.variants import Variant


def plan_of(model: str = "builtin", variant: Variant | None = None) -> Plan:
    variant = variant or Variant("int8", kv_cache="int8")
    base = ExecutorConfig(threads=1, max_context=256, kv_cache_gib=0.05)
    return Plan(
        model=model,
        model_hash=content_hash(open_checkpoint(resolve_model(model))),
        variant=variant,
        executor=variant.executor_config(base),
        scheduler=SchedulerConfig(max_num_requests=4, speculative="off"),
        machine=this_machine(),
        need={"slo": "ttft:p99<300ms+0.3ms*in", "quality": "top1>=0.98", "rate": "4rps"},
        measured={
            "goodput": Measurement(4.25, 4.0, 4.5),
            "kl:mean": Measurement(5.5e-05, 4.5e-05, 6.6e-05),
            "memory.weights": Measurement(12),
        },
        predicted={"goodput": 4.5, "kl: odd # name": 1e-9},
        versions=versions(),
        headline="4.25 requests/s: twice the default",
        created=now(),
    )


def elsewhere(plan: Plan) -> Plan:
    """The same, measured on another machine."""
    machine = replace(plan.machine, cpu="a 6502", cores=plan.machine.cores + 62)
    return replace(plan, machine=machine)
