"""Which GGUF files make up a model: one, or the parts NAME-00001-of-0000N.gguf of one.

The names of other parts are made from the name of the first; nothing that a file says leads to
another path.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from trimtab.checkpoints.gguf_file import GgufFile
from trimtab.errors import CheckpointError
from trimtab.models.config_reader import show

_PART = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)


def gguf_of(path: Path) -> Path | None:
    """The GGUF file (of several parts: the first) that `path` means: itself, or the only one of a
    directory without config.json. None if it means another kind of model.

    Raises CheckpointError for a directory that holds several.
    """
    if not path.is_dir():
        return path if path.suffix == ".gguf" else None
    if (path / "config.json").exists():
        return None
    names = sorted(file.name for file in path.glob("*.gguf"))
    if len(names) > 1:
        matches = [_PART.fullmatch(name) for name in names]
        models = {match and (match["stem"], match["count"]) for match in matches}
        if len(models) > 1 or None in models:
            raise CheckpointError(
                f"{path}: {len(names)} GGUF files ({show(names[0])}, ...): name the one to open"
            )
    return path / names[0] if names else None


def open_parts(path: Path) -> list[GgufFile]:
    """The file and, where it says that it is the first of several, the others, in order.

    Raises CheckpointError for a missing part or parts that do not belong together.
    """
    first = GgufFile(path)
    count = _number(first, "split.count", 1)
    if count <= 1:
        return [first]
    match = _PART.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise CheckpointError(
            f"{path}: a part of {count}: its name must end in -00001-of-{count:05}.gguf"
        )
    if int(match["number"]) != 1:
        raise CheckpointError(f"{path}: not the first part: open the one of number 00001")
    parts = [first]
    for i in range(2, count + 1):
        part = path.with_name(f"{match['stem']}-{i:05}-of-{count:05}.gguf")
        if not part.exists():
            raise CheckpointError(f"{part}: part {i} of {count} is missing")
        parts.append(GgufFile(part))
    _check_parts(parts, count)
    return parts


def _number(file: GgufFile, key: str, default: int) -> int:
    value = file.metadata.get(key, default)
    if type(value) is not int or value < 0:
        raise CheckpointError(f"{file.path}: {key} = {show(value)}: must be a number of parts")
    return value


def _check_parts(parts: Sequence[GgufFile], count: int) -> None:
    names: set[str] = set()
    for i, part in enumerate(parts):
        if _number(part, "split.count", 1) != count or _number(part, "split.no", 0) != i:
            raise CheckpointError(f"{part.path}: does not say that it is part {i + 1} of {count}")
        for name in part.tensors:
            if name in names:
                raise CheckpointError(f"{part.path}: tensor {show(name)} is in another part too")
            names.add(name)
    expected = _number(parts[0], "split.tensors.count", len(names))
    if expected != len(names):
        raise CheckpointError(
            f"{parts[0].path}: the parts hold {len(names)} tensors, not {expected} as they say"
        )
