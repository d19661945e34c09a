"""Other load generators, in environments of their own: how they are started, what they saw."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.workloads.records import RequestRecord

SECONDS = 900.0


def run_peer(command: list[str], folder: Path, **settings: str) -> None:
    """Raises RuntimeError with the end of what it printed. aiperf takes no directory as a tokenizer
    where HF_HUB_OFFLINE is set."""
    if shutil.which("chrt") and os.geteuid() == 0:
        command = ["chrt", "--rr", "1", *command]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", **settings}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, timeout=SECONDS
    )
    if done.returncode:
        raise RuntimeError(f"{Path(command[-1]).name}: {(done.stdout + done.stderr)[-800:]}")


def run_guidellm(
    command: str,
    url: str,
    model: str,
    tokenizer: Path,
    rows: Sequence[dict[str, Any]],
    profile: str,
    folder: Path,
) -> dict[str, Any]:
    """Its only benchmark, as its JSON has it. `rows`: prompt, output_tokens_count, and with the
    profile `kind=replay` relative_timestamp; each is sent once, greedily, to its full length. By
    one worker: the ten that it starts by default took a third of two cores from the server."""
    data, out = folder / "prompts.jsonl", folder / "guidellm.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    backend = {
        "kind": "openai_http",
        "target": url,
        "request_format": "/v1/completions",
        "model": model,
        "validate_backend": False,
        "extras": {"body": {"temperature": 0, "ignore_eos": True}},
    }
    run_peer(
        [
            command, "run", "--backend", json.dumps(backend),
            "--profile", profile,
            "--constraint", f"kind=max_requests,count={len(rows)}",
            "--data", f"kind=json_file,path={data}",
            "--tokenizer", f"kind=huggingface_auto,model={tokenizer}",
            "--output", f"kind=json,path={out}", "--disable-console",
        ],
        folder,
        HF_HUB_OFFLINE="1",
        GUIDELLM__MAX_WORKER_PROCESSES="1",
    )  # fmt: skip
    found: dict[str, Any] = json.loads(out.read_text())["benchmarks"][0]
    return found


def guidellm_records(benchmark: dict[str, Any]) -> list[RequestRecord]:
    """Its requests as ours. It keeps when the first and the last token came and none between:
    gaps within a request are taken to be alike."""
    groups = benchmark["requests"]
    everyone = [one for name in ("successful", "errored", "incomplete") for one in groups[name]]
    times = [one["info"]["timings"] for one in everyone]
    start = min(time["targeted_start"] or time["request_start"] for time in times)
    records = []
    for index, (one, time) in enumerate(zip(everyone, times, strict=True)):
        record = RequestRecord(index, (time["targeted_start"] or time["request_start"]) - start)
        record.sent = time["request_start"] - start
        if one not in groups["successful"]:
            record.error = str(one["info"].get("error") or "not completed")
            records.append(record)
            continue
        count = int(one["output_tokens"])
        end = time["request_end"]
        # Tokens that no text comes from leave no trace in it but the end.
        first, last = (
            (time[name] or end) - start
            for name in ("first_token_iteration", "last_token_iteration")
        )
        gap = (last - first) / max(1, count - 1)
        record.token_times = [first + gap * place for place in range(count)]
        record.token_counts = [1] * count
        record.ended = end - start
        record.num_prompt_tokens = int(one["prompt_tokens"])
        record.num_output_tokens = count
        records.append(record)
    return records
