"""trimtab beside its peers, on one machine, in one run, pinned to the same cores.

    python benchmarks/compare.py --model qwen3-0.6b --work DIR --json benchmarks/results/NAME.json
    python benchmarks/compare.py --table benchmarks/results/NAME.json

Makes an environment for each peer (the first time: gigabytes, and minutes of compiling), writes one
random-weight checkpoint, gives every peer its own copy of it, then measures. Rounds are the outer
loop and every contender gets fresh processes in each, so that a noisy minute hits all alike. The
JSON is written after every phase; a run that was interrupted goes on from it, if nothing differs.

    decode N       127 / (time from the first of 128 tokens to the last): one stream, prompt of N
    prefill N      N / time to the first token
    streams B      B * 128 / time of B prompts of 128, 128 tokens each, prefill included
    neighbour      decode 128 while another process keeps the first core busy half of the time
    prefix         seconds to the first token of a prompt of 2048 + 32, and of one with 32 others
    start          seconds from process start to the first token after a prompt of 128; "cold" in
                   the first round, when nothing is left on disk of earlier runs
    peak GB        highest resident memory of all that; beside a context, of that decode

Ceilings are the best read bandwidth and arithmetic measured during the run, against the bytes that
the contender's own formats, of weights and KV cache, make it read.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, Contender, ConversionError, convert
from make_model import known_models, make_model, read_config
from measuring import OUTPUT_TOKENS, PeerError, Plan, measure
from peers.environments import InstallError, install
from tables import render, series
from trimtab.bench.footprint import Footprint, ceilings, footprint
from trimtab.bench.machine import MachineLimits, measure_bandwidth, measure_machine
from trimtab.bench.report import ceiling_of
from trimtab.checkpoints import open_checkpoint, resolve_model
from trimtab.config import ExecutorConfig
from trimtab.errors import UserError
from trimtab.executors.cpu import select_isa
from trimtab.models.spec import ModelSpec


def ceiling(name: str, contender: Contender, spec: ModelSpec, machine: MachineLimits) -> float:
    """Tokens a second that the machine permits this contender; 0 where there is no such limit."""
    kind = name.split()[0]
    config = ExecutorConfig(weights=contender.group)
    model = own_bytes(footprint(spec, config), contender, spec)
    if kind == "decode":
        context = int(name.split()[1]) + OUTPUT_TOKENS // 2
        rates = (machine.read_bytes_per_s, machine.linear_macs_per_s(contender.group))
        limits = ceilings(model, *rates, machine.attention_macs_per_s, (context,), ())
        return limits.decode[context]
    if kind == "prefill" or name.endswith("streams"):
        return ceiling_of(name, model, machine)
    return 0.0


def own_bytes(model: Footprint, contender: Contender, spec: ModelSpec) -> Footprint:
    """The footprint with the bytes that this contender's formats have."""
    layers = model.layer_macs_per_token * contender.layer_bits / 8
    head = model.head_macs_per_token * contender.head_bits / 8
    vector_bits = spec.head_dim * contender.kv.bits + contender.kv.vector_bits
    return replace(
        model,
        read_bytes_per_step=int(layers + head),
        kv_bytes_per_token=spec.num_layers * spec.num_kv_heads * 2 * vector_bits // 8,
    )


class Run:
    """The document that a run fills, and the file that it is kept in."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        """Goes on from the file, if there is one. SystemExit if it is of another run."""
        self._path = path
        self.document: dict[str, Any] = {"settings": settings, "machine": {}, "results": []}
        if path is None or not path.exists():
            return
        kept = json.loads(path.read_text())
        before = kept.get("settings", {})
        names = sorted(settings.keys() | before.keys())
        differing = [name for name in names if settings.get(name) != before.get(name)]
        if differing:
            raise SystemExit(f"{path} has other settings: {', '.join(differing)} differ")
        self.document = kept
        for result in kept["results"]:  # what failed is tried again
            for phases in result["rounds"]:
                for phase in result["errors"]:
                    phases.pop(phase, None)
            result["errors"] = {}

    def result(self, contender: Contender) -> dict[str, Any]:
        """The contender's entry; made where there is none."""
        for result in self.document["results"]:
            if result["label"] == contender.label:
                found: dict[str, Any] = result
                return found
        result = {
            "label": contender.label,
            **asdict(contender),
            "kv": contender.kv.name,
            "kv_bits": contender.kv.bits,
            "about": "",
            "errors": {},
            "ceilings": {},
            "rounds": [],
        }
        self.document["results"].append(result)
        return result

    def add_machine(self, machine: MachineLimits) -> None:
        """Keeps the best arithmetic of all that was measured."""
        known = self.document["machine"]
        rates = known.get("macs_per_s", {})
        self.document["machine"] = {
            "cpu": machine.cpu,
            "isa": machine.isa,
            "threads": machine.threads,
            "macs_per_s": {k: max(v, rates.get(k, 0)) for k, v in machine.macs_per_s.items()},
            "bandwidth": known.get("bandwidth", []),
        }

    def limits(self) -> MachineLimits:
        known = self.document["machine"]
        bandwidth = known["bandwidth"]
        return MachineLimits(
            cpu=known["cpu"],
            isa=known["isa"],
            threads=known["threads"],
            read_bytes_per_s=max(bandwidth),
            read_bytes_per_s_median=statistics.median(bandwidth),
            read_bytes_per_s_low=min(bandwidth),
            macs_per_s=known["macs_per_s"],
        )

    def save(self, spec: ModelSpec) -> None:
        """Never leaves half a file."""
        by_label = {contender.label: contender for contender in CONTENDERS}
        for result in self.document["results"]:
            names = series(result)
            rates = {n: ceiling(n, by_label[result["label"]], spec, self.limits()) for n in names}
            result["ceilings"] = {name: rate for name, rate in rates.items() if rate}
        if self._path is None:
            return
        partial = self._path.with_name(self._path.name + ".partial")
        partial.write_text(json.dumps(self.document, indent=1) + "\n")
        partial.replace(self._path)


def run_round(
    run: Run,
    plan: Plan,
    round_number: int,
    copies: dict[Contender, Path],
    spec: ModelSpec,
    root: Path,
) -> None:
    """One round of every contender, without the phases that the run has already."""
    isa, threads = run.document["machine"]["isa"], run.document["machine"]["threads"]
    for contender, copy in copies.items():
        result = run.result(contender)
        while len(result["rounds"]) <= round_number:
            result["rounds"].append({})
        done = result["rounds"][round_number]
        for phase in plan.phases(contender, round_number):
            if phase in done or phase in result["errors"]:
                continue
            say(f"round {round_number + 1}: {contender.label}, {phase}")
            if phase == "main":  # a busy minute must not set the limit
                run.add_machine(measure_machine(isa, threads))
            run.document["machine"]["bandwidth"] += measure_bandwidth(isa, threads, 3)
            samples: dict[str, float] = {}
            try:
                about = measure(contender, copy, plan, round_number, phase, threads, root, samples)
            except PeerError as error:
                result["errors"][phase] = str(error)
                say(f"    {error}")
            else:
                if phase == "main":
                    check_same_version(result, about)
            done[phase] = samples
            run.save(spec)


def check_same_version(result: dict[str, Any], about: str) -> None:
    before, result["about"] = result["about"], about
    if before not in ("", about):
        raise SystemExit(f"{result['label']} has changed since the run began: {before} -> {about}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen3-0.6b", help="a name of benchmarks/configs")
    parser.add_argument("--work", type=Path, help="environments and checkpoints")
    parser.add_argument("--only", default="", help="contenders whose label contains one of a,b,c")
    parser.add_argument("--rounds", type=int, default=3, help="0 only prepares what they need")
    parser.add_argument("--prefill", default="512,2048")
    parser.add_argument("--streams", default="8,16")
    parser.add_argument("--contexts", default="", help="decode after prompts of these lengths too")
    parser.add_argument("--context-rounds", type=int, default=1, help="in so many of the rounds")
    parser.add_argument("--no-neighbour", dest="neighbour", action="store_false")
    parser.add_argument("--no-prefix", dest="prefix", action="store_false")
    parser.add_argument("--cores", default="", help="such as 0,1; default: all of this process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="goes on from there if it exists")
    parser.add_argument("--table", type=Path, help="show this JSON and measure nothing")
    args = parser.parse_args()
    if not args.work and not args.table:
        parser.error("--work DIR or --table FILE is needed")
    return args


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def prepare(
    contenders: list[Contender], checkpoint: Path, root: Path
) -> tuple[dict[Contender, Path], dict[Contender, str]]:
    """Each contender's copy of the checkpoint, or why it has none."""
    copies, errors = {}, {}
    for contender in contenders:
        try:
            python = install(root, contender.environment)
            copies[contender] = convert(contender, python, checkpoint, checkpoint.parent)
        except (ConversionError, InstallError) as error:
            errors[contender] = str(error)
        say(f"{contender.label}: {errors.get(contender, 'ready')}")
    return copies, errors


def main() -> None:
    args = parse_args()
    if args.table:
        print("\n".join(render(json.loads(args.table.read_text()))))
        return
    if args.cores:
        os.sched_setaffinity(0, numbers(args.cores))
    root = args.work.resolve()
    root.mkdir(parents=True, exist_ok=True)
    wanted = [part for part in args.only.split(",") if part] or [""]
    contenders = [c for c in CONTENDERS if any(part in c.label for part in wanted)]
    if not contenders:
        raise SystemExit(f"no contender matches {args.only!r}")
    name = args.model if args.model in known_models() else Path(args.model).resolve().stem
    checkpoint = root / name / "checkpoint"
    if not checkpoint.exists():
        make_model(read_config(args.model), checkpoint, args.seed)
    copies, errors = prepare(contenders, checkpoint, root)
    if args.rounds <= 0:
        return
    spec = open_checkpoint(resolve_model(str(checkpoint))).spec
    prefill, streams, contexts = map(numbers, (args.prefill, args.streams, args.contexts))
    plan = Plan(
        prefill=prefill,
        streams=streams,
        contexts=contexts,
        context_rounds=args.context_rounds,
        neighbour=args.neighbour,
        prefix=args.prefix,
        vocab_size=spec.vocab_size,
        seed=args.seed,
    )
    machine = measure_machine(select_isa(), len(os.sched_getaffinity(0)))
    settings = {
        "model": name,
        **json.loads(json.dumps(asdict(plan))),
        "contenders": [contender.label for contender in contenders],
        "cpu": machine.cpu,
        "isa": machine.isa,
        "threads": machine.threads,
    }
    run = Run(args.json, settings)
    run.add_machine(machine)
    for contender in contenders:
        result = run.result(contender)
        if contender in errors:
            result["errors"]["main"] = errors[contender]
    for round_number in range(args.rounds):
        run_round(run, plan, round_number, copies, spec, root)
    shutil.rmtree(root / "caches", ignore_errors=True)
    print("\n".join(render(run.document)))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
