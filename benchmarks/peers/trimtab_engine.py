"""trimtab itself: the engine in the worker's process, as `trimtab bench` drives it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from worker import Generated, Options

import trimtab
from trimtab.config import ExecutorConfig, SchedulerConfig, parse_weights
from trimtab.engine.client import EngineRequest
from trimtab.engine.sampling_params import SamplingParams
from trimtab.environment import prepare_process

BLOCK = 16
SOURCES = ("native", "src/trimtab", "CMakeLists.txt")


def version() -> str:
    """With the last commit that changed what runs, where this is a git checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", root, *arguments, "--", *SOURCES],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip()

    try:
        commit = git("log", "-1", "--format=%h")
        changed = " changed" if commit and git("status", "--porcelain") else ""
    except OSError:  # there is no git
        commit = changed = ""
    return f"trimtab {trimtab.__version__}" + (f" ({commit}{changed})" if commit else "")


class TrimtabEngine:
    def __init__(self, model: Path, options: Options) -> None:
        prepare_process()  # as the command line does
        from trimtab.engine.loading import load_engine  # imports numpy

        weights, group_size = parse_weights(options.format)
        executor = ExecutorConfig(
            weights=weights,
            group_size=group_size,
            threads=options.threads,
            num_blocks=options.max_tokens // BLOCK + 2 * options.max_streams,
        )
        scheduler = SchedulerConfig(
            prefix_cache=options.prefix_cache,
            max_num_requests=options.max_streams,
            max_queued_requests=1024,
            speculative="off",  # prompts are random: guesses would prove nothing
        )
        self._engine = load_engine(str(model), executor, scheduler)
        self._serial = 0

    @property
    def about(self) -> str:
        return f"{version()}; {self._engine.info.executor}; prefix caching where measured"

    def generate(self, prompts: list[list[int]], num_tokens: int) -> Generated:
        params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
        outputs: dict[str, list[int]] = {}
        for prompt in prompts:
            self._serial += 1
            outputs[f"r{self._serial}"] = []
            self._engine.add_request(EngineRequest(f"r{self._serial}", prompt, params))
        running = len(prompts)
        first_at = None
        while running:
            for result in self._engine.step():
                if result.error:
                    raise RuntimeError(result.error)
                if first_at is None and result.token_ids and len(prompts) == 1:
                    first_at = time.perf_counter()
                outputs[result.request_id] += result.token_ids
                running -= result.finish_reason is not None
        return Generated(list(outputs.values()), first_at)


def load(model: Path, options: Options) -> TrimtabEngine:
    return TrimtabEngine(model, options)
