"""From a results file to typed results, or to one line that says what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trimtab.errors import UserError
from trimtab.optimizer.report.read import MisfitError, read_record, shown
from trimtab.optimizer.report.results import Results

FORMAT = 1
STAGES = ("bound", "quality", "calibrate", "simulated", "measured")


def check_results(document: Any) -> Results:
    """The typed results, after every check; a UserError names the first thing that is wrong."""
    if isinstance(document, dict) and document.get("format") not in (None, FORMAT):
        found = shown(document["format"])
        raise UserError(f"results: format {found} is not {FORMAT}, which this version reads")
    results = read_record(Results, document)
    if results.status not in ("met", "not met"):
        raise MisfitError("status", f"must be 'met' or 'not met', not {shown(results.status)}")
    known = set()
    for i, candidate in enumerate(results.candidates):
        if candidate.id in known:
            raise MisfitError(f"candidates[{i}].id", f"{shown(candidate.id)} stands there twice")
        if candidate.stage not in STAGES:
            must = f"must be one of {', '.join(STAGES)}"
            raise MisfitError(f"candidates[{i}].stage", f"{must}, not {shown(candidate.stage)}")
        known.add(candidate.id)
    for where, id_ in _references(results):
        if id_ is not None and id_ not in known:
            raise MisfitError(where, f"names {shown(id_)}, which is not among the candidates")
    if results.is_met and results.chosen is None:
        raise MisfitError("chosen", "is null although the status is 'met'")
    return results


def _references(results: Results) -> Iterable[tuple[str, str | None]]:
    yield "chosen", results.chosen
    yield "default", results.default
    if results.infeasible is not None:
        yield "infeasible.closest", results.infeasible.closest
    for i, rung in enumerate(results.ladder):
        yield f"ladder[{i}].id", rung.id
    for i, case in enumerate(results.sensitivity):
        yield f"sensitivity[{i}].choice", case.choice


def read_document(path: Path) -> Any:
    """The JSON of a results file. Raises UserError if it cannot be read or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not JSON: it is not UTF-8 text") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
