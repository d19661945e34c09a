"""Who may import whom inside trimtab (docs/architecture.md); exits with 1 and a list if broken.

Rooms stand on levels; a module imports only from its own room and from lower levels, and no two
rooms import each other. What is heavy is imported inside functions, so those imports count too.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

# Rooms on the same line are beside each other and do not import one another.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("errors", "version"),
    ("environment",),
    ("config", "models", "numerics", "builtin"),
    ("checkpoints",),
    ("tokenization",),  # a GGUF file holds its tokenizer
    ("workloads",),
    ("executors",),
    ("engine",),
    ("evaluation", "simulator", "server", "bench"),
    ("compression",),
    ("optimizer", "cluster"),
    ("cli",),
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# The package's front door hands out LLM and SamplingParams lazily; nobody inside may use it.
FRONT_DOOR = {"__init__", "__main__"}


def room_of(module: str) -> str:
    """`trimtab.engine.scheduler` -> `engine`; `trimtab` -> `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported_modules(path: Path) -> list[tuple[int, str]]:
    """(line, module) of every trimtab import in a file, wherever it stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                found.append((node.lineno, "RELATIVE"))
            elif base == "trimtab":
                found += [(node.lineno, f"trimtab.{alias.name}") for alias in node.names]
            else:
                found.append((node.lineno, base))
    return [(line, name) for line, name in found if name.split(".")[0] in ("trimtab", "RELATIVE")]


def violations(package: Path) -> list[str]:
    """One line for each import that points upward, sideways or nowhere."""
    problems = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        room = parts[0]
        if room not in LEVEL_OF and room not in FRONT_DOOR:
            problems.append(f"{path}: room {room!r} is not in tools/import_rule.py")
            continue
        for line, module in imported_modules(path):
            target = room_of(module)
            where = f"{path}:{line}: {module}"
            if module == "RELATIVE":
                problems.append(f"{path}:{line}: relative import")
            elif target in ("_native", "__version__") or target == room or room in FRONT_DOOR:
                continue
            elif target not in LEVEL_OF:
                problems.append(f"{where}: not a room")
            elif LEVEL_OF[target] >= LEVEL_OF[room]:
                problems.append(f"{where}: {room} may not import {target}")
    return problems


def main() -> int:
    problems = violations(Path(__file__).resolve().parent.parent / "src" / "trimtab")
    print("\n".join(problems) or "import rule: holds")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
