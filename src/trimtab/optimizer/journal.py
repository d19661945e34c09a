"""What was tried and what came of it, a line each, so that an interrupted run goes on.

A trial is known by its kind and by everything that its result depends on (model content, variant,
configuration, workload, seed, machine). A line that was cut short by a kill is passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from trimtab.errors import UserError

FORMAT = 3  # another one means: done again


class Journal:
    """Append-only; each entry is on the disk before `put` returns. One process at a time."""

    def __init__(self, path: Path, resume: bool) -> None:
        """Without `resume` what an earlier run left is kept aside as `NAME.before`. UserError for
        a path that cannot be written."""
        self.path = path
        self._found: dict[str, Any] = {}
        self.num_reused = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                if resume:
                    self._read()
                else:
                    path.replace(path.with_name(path.name + ".before"))
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{error.filename or path}: {error.strerror}") from None

    def get(self, kind: str, key: dict[str, Any]) -> Any | None:
        """The result of such a trial, if it was finished."""
        found = self._found.get(_digest(kind, key))
        self.num_reused += found is not None
        return found

    def put(self, kind: str, key: dict[str, Any], result: Any) -> None:
        digest = _digest(kind, key)
        self._found[digest] = result
        line = {"format": FORMAT, "kind": kind, "id": digest, "key": key, "result": result}
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}") from None

    def close(self) -> None:
        self._file.close()

    def _read(self) -> None:
        text = self.path.read_text(encoding="utf-8", errors="replace")
        if text and not text.endswith("\n"):
            with self.path.open("a") as file:
                file.write("\n")  # what comes next is not to be joined to what was cut
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                if entry["format"] == FORMAT:
                    self._found[entry["id"]] = entry["result"]
            except (ValueError, KeyError, TypeError):
                continue


def _digest(kind: str, key: dict[str, Any]) -> str:
    text = json.dumps([FORMAT, kind, key], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
