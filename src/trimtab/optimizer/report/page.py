"""The HTML file: it needs nothing but itself, and lets nothing in it reach out or run."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from trimtab.errors import UserError
from trimtab.optimizer.report import choice, first_screen, formatting, table
from trimtab.optimizer.report.check import check_results
from trimtab.optimizer.report.load_pictures import compared, load_pictures, parity_pictures
from trimtab.optimizer.report.machine_pictures import ladder_picture, roofline_picture
from trimtab.optimizer.report.pictures import latency_against_throughput, quality_against_cost
from trimtab.optimizer.report.results import Machine, Results
from trimtab.optimizer.report.svg import shape

DIRECTORY = Path(__file__).parent / "page"


def write_report(results: dict[str, Any], out: Path) -> None:
    """Writes `results` (the document of results.json) as one HTML file, whole or not at all.

    Raises UserError for damaged results, or where the file cannot be written.
    """
    page = render(results)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
                file.write(page)
            Path(name).chmod(0o644)
            Path(name).replace(out)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from error


def render(document: dict[str, Any]) -> str:
    """The page's text. Raises UserError for damaged results."""
    import jinja2
    from markupsafe import Markup

    results = check_results(document)
    style = (DIRECTORY / "report.css").read_text(encoding="utf-8")
    script = (DIRECTORY / "report.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(DIRECTORY),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.globals.update(
        form=formatting, svg=lambda content: Markup(content), mark=_legend_mark
    )
    # What was read must not depend on how a line ends, for its digest is of these very bytes.
    return environment.get_template("report.html").render(
        **_content(results),
        policy=_policy(script, style),
        style=Markup(style),
        script=Markup(script),
        data=Markup(_embedded(document)),
    )


def _content(results: Results) -> dict[str, Any]:
    plan = choice.shown_plan(results)
    terms, terms_note = first_screen.terms(results)
    return {
        "terms": terms,
        "terms_note": terms_note,
        "results": results,
        "plan": plan,
        "headline": first_screen.headline(results),
        "figures": first_screen.figures(results),
        "errors": first_screen.prediction_errors(results),
        "errors_at_pace": first_screen.errors_at_pace(results),
        "command": serve_command(results),
        "quality_cost": quality_against_cost(results),
        "latency_throughput": [
            latency_against_throughput(results, one) for one in ("ttft", "itl", "e2e")
        ],
        "loads": load_pictures(results),
        "load_tables": [
            (label, candidate, choice.operating_points(results, candidate))
            for candidate, _, label in compared(results)
        ],
        "percentiles": {one: choice.percentile_of(results, one) for one in ("ttft", "itl", "e2e")},
        "parity": parity_pictures(results),
        "ladder": ladder_picture(results),
        "roofline": roofline_picture(results),
        "columns": table.columns(results),
        "rows": table.rows(results),
        "machine": machine_facts(results.machine),
        "asked": choice.asked_in_words,
    }


def serve_command(results: Results) -> str:
    """What to run; nothing where there is no plan."""
    import shlex

    return f"trimtab serve {shlex.quote(results.plan_path)}" if results.plan_path else ""


def machine_facts(machine: Machine) -> list[tuple[str, str]]:
    macs = ", ".join(
        f"{name} {formatting.large(one)}/s" for name, one in machine.macs_per_s.items() if one
    )
    counts = [
        f"{number} {name}"
        for number, name in ((machine.cores, "cores"), (machine.threads, "threads"))
        if number is not None
    ]
    facts = [
        ("Device", machine.device if machine.device != "cpu" else ""),
        ("GPU", machine.gpu),
        (
            "GPU memory",
            formatting.num_bytes(machine.gpu_memory_bytes) if machine.gpu_memory_bytes else "",
        ),
        ("Driver", machine.driver),
        ("Processor", machine.cpu),
        ("Instructions", machine.isa),
        ("Cores", ", ".join(counts)),
        ("Memory", formatting.num_bytes(machine.memory_bytes) if machine.memory_bytes else ""),
        (
            "Reads",
            f"{formatting.large(machine.read_bytes_per_s)}B/s" if machine.read_bytes_per_s else "",
        ),
        ("Multiply-adds", macs),
        ("Noise", formatting.percent(machine.noise) if machine.noise is not None else ""),
        ("Fingerprint", formatting.setting(machine.fingerprint) if machine.fingerprint else ""),
    ]
    return [(name, value) for name, value in facts if value]


def _visible(value: Any) -> Any:
    """Of whatever a template prints; markup is ours, and was looked after when it was made."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return formatting.visible(value)
    return value


def _legend_mark(name: str, class_: str) -> Any:
    from markupsafe import Markup

    content = shape(name, class_)
    return Markup(f'<svg class="key" viewBox="-9 -9 18 18" aria-hidden="true">{content}</svg>')


def _policy(script: str, style: str) -> str:
    """Nothing but the one script and the one style that stand in the page."""
    return (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embedded(document: Any) -> str:
    """JSON that cannot end the element in which it stands."""
    text = json.dumps(_finite(document), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    """Without what JSON has no word for."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value
