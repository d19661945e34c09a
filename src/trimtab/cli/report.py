"""`trimtab report`: the results of a search as one HTML file, and a summary."""

from __future__ import annotations

import shutil
from pathlib import Path

import typer

from trimtab.errors import UserError


def command(
    results: Path = typer.Argument(help="results.json, as trimtab optimize writes it"),
    out: Path | None = typer.Option(None, help="the HTML file; beside RESULTS without it"),
) -> None:
    """Write the report of a search: one HTML file that needs nothing but itself."""
    from trimtab.optimizer.report import read_document, summary_lines, write_report

    document = read_document(results)
    out = results.with_suffix(".html") if out is None else out
    if out.resolve() == results.resolve():
        raise UserError(f"--out {out} is the results file itself: name another")
    write_report(document, out)
    width = min(shutil.get_terminal_size().columns, 100)
    print("\n".join(summary_lines(document, width)))
    print(f"report   {out}")
