"""`trimtab quantize`: a smaller checkpoint from a given one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from trimtab.errors import ConfigError

if TYPE_CHECKING:
    from trimtab.compression.settings import QuantizeSettings


def command(
    model: str = typer.Argument(help="builtin, a directory, a GGUF file or a Hugging Face id"),
    out: Path = typer.Option(..., help="where to write: must not exist yet"),
    method: str = typer.Option(
        "gptq", help="rtn (no calibration), gptq, awq, smoothquant (8-bit activations), autoround"
    ),
    bits: int | None = typer.Option(
        None, help="of a weight: 8, 4, 3 or 2; default: 4, of smoothquant 8"
    ),
    group_size: int | None = typer.Option(
        None,
        help="input columns that share a scale: 32, 64, 128, or 0 for one scale a channel; "
        "default: 128, of smoothquant 0",
    ),
    symmetric: bool | None = typer.Option(
        None,
        "--symmetric/--asymmetric",
        help="integers around 0, or around a zero point of each group; default: symmetric, of awq "
        "asymmetric",
    ),
    bits_per_weight: float | None = typer.Option(
        None, help="a budget, scales included: 3, 4 or 8 bits for each matrix by its sensitivity"
    ),
    head: bool = typer.Option(False, help="quantize the output head, too"),
    embedding: bool = typer.Option(False, help="quantize the embedding, too"),
    calibration: Path | None = typer.Option(
        None, help='text, or JSON lines {"text"} or {"messages"}; builtin brings its own'
    ),
    samples: int = typer.Option(128, min=1, help="calibration sequences"),
    sequence_length: int = typer.Option(512, min=2, help="tokens of a calibration sequence"),
    seed: int = typer.Option(0, min=0, help="of the choice of calibration text, and of autoround"),
    iterations: int = typer.Option(200, min=1, help="steps a layer of autoround"),
    container: str = typer.Option(
        "compressed-tensors", "--format", help="compressed-tensors, gptq, awq or gguf"
    ),
    gguf_type: str | None = typer.Option(
        None,
        "--type",
        help="with --format gguf: Q4_K_M, Q8_0, F16 ...: all of the model as llama.cpp's own "
        "quantizer does it, without a method; with --calibration, what matters to the outputs is "
        "rounded more carefully",
    ),
    device: str = typer.Option("cpu", help="where to compute: cpu, cuda, cuda:1 ..."),
    as_json: bool = typer.Option(False, "--json", help="one JSON object instead of text"),
) -> None:
    """Write MODEL with its matrices as small integers: fewer bytes, faster, a little worse.

    The layers' matrices are quantized; the output head and the embedding on request.
    """
    from trimtab.compression.settings import QuantizeSettings, check_method

    if gguf_type is not None:
        if container != "gguf":
            raise ConfigError("--type names a type of GGUF: use it with --format gguf")
        rows = QuantizeSettings(
            num_samples=samples, sequence_length=sequence_length, seed=seed, device=device
        )
        _write_gguf(model, out, gguf_type, calibration, rows, as_json)
        return
    from trimtab import builtin
    from trimtab.checkpoints import open_checkpoint, resolve_model
    from trimtab.compression.quantize import check_container, quantize_checkpoint

    smooth = check_method(method) == "smoothquant"
    settings = QuantizeSettings(
        method=check_method(method),
        bits=bits if bits is not None else 8 if smooth else 4,
        group_size=group_size if group_size is not None else 0 if smooth else 128,
        symmetric=symmetric,
        head=head,
        embedding=embedding,
        bits_per_weight=bits_per_weight,
        num_samples=samples,
        sequence_length=sequence_length,
        seed=seed,
        device=device,
        iterations=iterations,
    )
    if calibration is None and model == "builtin" and settings.needs_calibration:
        calibration = builtin.calibration_path()
    if calibration is None and settings.needs_calibration:
        what = "a budget of bits" if bits_per_weight is not None else method
        raise ConfigError(
            f"{what} needs text like that which the model will see: use --calibration FILE"
        )
    report = quantize_checkpoint(
        open_checkpoint(resolve_model(model)),
        out,
        settings,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
        container=check_container(container),
        calibration=calibration,
    )
    print(json.dumps(report.as_json()) if as_json else "\n".join([*report.lines(), f"-> {out}"]))


def _write_gguf(
    model: str,
    out: Path,
    gguf_type: str,
    calibration: Path | None,
    settings: QuantizeSettings,
    as_json: bool,
) -> None:
    from trimtab.checkpoints import open_checkpoint, resolve_model
    from trimtab.checkpoints.gguf_types import file_type
    from trimtab.checkpoints.writing import write_gguf
    from trimtab.compression.quantize import importance_of

    def progress(name: str, count: int, total: int) -> None:
        if count * 10 // total != (count - 1) * 10 // total:
            print(f"{count} of {total} tensors", file=sys.stderr, flush=True)

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    gguf_type = file_type(gguf_type)
    source = open_checkpoint(resolve_model(model))
    importance = None
    if calibration is not None:
        importance = importance_of(source, calibration, settings, tell)
    report = write_gguf(source, out, gguf_type, importance, progress)
    if as_json:
        shown = {"path": str(report.path), "type": gguf_type, "total_bytes": report.total_bytes}
        print(json.dumps({**shown, "quantized": report.quantized, "notes": report.notes}))
        return
    size = f"{report.total_bytes / 1e6:,.1f} MB"
    print("\n".join([f"{len(report.quantized)} matrices quantized, {size}", *report.notes]))
    print(f"-> {out}")
