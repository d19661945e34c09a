"""Which files of a Hugging Face directory hold the weights, and which tensor is in which."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trimtab.checkpoints.json_file import read_json_object
from trimtab.checkpoints.safetensors_file import SafetensorsFile
from trimtab.errors import CheckpointError
from trimtab.models.config_reader import show

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def open_shards(directory: Path) -> dict[str, SafetensorsFile]:
    """Tensor name -> the open file that holds it.

    `model.safetensors` goes before `model.safetensors.index.json`; without either, the only
    .safetensors file of the directory is taken. Raises CheckpointError.
    """
    if (directory / SINGLE_FILE).exists():
        return open_single(directory / SINGLE_FILE)
    if (directory / INDEX_FILE).exists():
        return _open_indexed(directory)
    found = sorted(path.name for path in directory.glob("*.safetensors"))
    if len(found) == 1:
        return open_single(directory / found[0])
    if found:
        raise CheckpointError(
            f"{directory}: {len(found)} .safetensors files ({show(found[0])}, ...) "
            f"but no {INDEX_FILE}"
        )
    raise _no_weights(directory)


def open_single(path: Path) -> dict[str, SafetensorsFile]:
    file = SafetensorsFile(path)
    return dict.fromkeys(file.entries, file)


def _open_indexed(directory: Path) -> dict[str, SafetensorsFile]:
    index = directory / INDEX_FILE
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index}: weight_map must be an object")
    for name, shard in weight_map.items():
        _check_shard_name(shard, f"{index}: {show(name)}")
    files: dict[str, SafetensorsFile] = {}
    for shard in sorted(set(weight_map.values())):
        if not (directory / shard).exists():
            raise CheckpointError(f"{directory}: shard {shard} is missing")
        files[shard] = SafetensorsFile(directory / shard)
    _check_agreement(weight_map, files, index)
    return {name: files[shard] for name, shard in weight_map.items()}


def _check_shard_name(shard: object, where: str) -> None:
    """A plain name of a .safetensors file: it cannot lead out of the directory."""
    plain = (
        isinstance(shard, str)
        and shard.endswith(".safetensors")
        and shard.isprintable()
        and not shard.startswith(".")
        and not any(separator in shard for separator in ("/", "\\", ":"))
        and len(shard.encode(errors="replace")) <= 255
    )
    if not plain:
        raise CheckpointError(f"{where}: {show(shard)} is not a plain .safetensors file name")


def _check_agreement(
    weight_map: Mapping[str, str], files: Mapping[str, SafetensorsFile], index: Path
) -> None:
    """The index lists exactly what the shards hold."""
    for name, shard in weight_map.items():
        if name not in files[shard].entries:
            raise CheckpointError(f"{index}: tensor {show(name)} is not in {shard}")
    for shard, file in files.items():
        for name in file.entries:
            if weight_map.get(name) != shard:
                raise CheckpointError(
                    f"{index}: tensor {show(name)} of {shard} is not listed there"
                )


def _no_weights(directory: Path) -> CheckpointError:
    suffixes = {path.suffix for path in directory.iterdir()}
    if suffixes.intersection(PICKLE_SUFFIXES):
        return CheckpointError(
            f"{directory}: only pickled weights (.bin, .pt), which can run code and are never "
            "loaded; convert them to safetensors (transformers: model.save_pretrained(DIR))"
        )
    if ".gguf" in suffixes:
        return CheckpointError(f"{directory}: no .safetensors file; name the GGUF file to open it")
    return CheckpointError(f"{directory}: no .safetensors file")
