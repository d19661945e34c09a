"""Folded scalings: the float model's output stays what it was, bias, grouped queries and all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from small_models import rows

from trimtab.checkpoints.base import Checkpoint, StoredTensor
from trimtab.compression import awq, smoothquant
from trimtab.compression.activations import Activations
from trimtab.compression.folding import READERS, FoldedLayer
from trimtab.compression.layer_task import LayerResult, LayerTask
from trimtab.compression.settings import MATRICES, QuantizeSettings
from trimtab.executors.torch_model import TorchDecoder, layer_weights, load

CPU = torch.device("cpu")
FAMILIES = ["llama", "llama-biases", "qwen2", "qwen3", "gemma2", "phi3"]


def task_of(checkpoint: Checkpoint, dtype: torch.dtype, **settings: Any) -> LayerTask:
    decoder = TorchDecoder(checkpoint.spec)
    embedding = load(checkpoint, "embed", CPU)
    inputs = Activations.of_tokens(rows(), lambda ids: decoder.embed(embedding, ids), CPU)
    weights = layer_weights(checkpoint, 0, CPU)
    chosen = QuantizeSettings(**settings)
    return LayerTask(
        decoder=decoder,
        index=0,
        weights=weights,
        grids=dict.fromkeys(MATRICES, chosen.grid),
        inputs=inputs,
        float_inputs=inputs,
        settings=chosen,
        vector_dtypes={name: dtype for name, tensor in weights.items() if tensor.ndim == 1},
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_scaling_leaves_the_output(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint = small_models.build(tmp_path, family, dtype)
    task = task_of(checkpoint, dtype, group_size=32)
    layer = FoldedLayer(checkpoint.spec, dict(task.weights), task.vector_dtypes)
    generator = torch.Generator().manual_seed(1)
    for source in READERS:
        count = len(task.weights[source])
        layer.fold(source, torch.exp(torch.randn(count, generator=generator)))
    for source in ("attn_norm", "mlp_norm"):
        assert not torch.equal(layer.weights[source], task.weights[source])
        assert torch.equal(layer.weights[source].to(dtype).float(), layer.weights[source])
    batch = task.calibration().batch(0)
    with torch.no_grad():
        before = task.forward(batch, task.weights)
        after = task.forward(batch, layer.weights)
    biased = dtype == torch.bfloat16 and {"v_bias", "up_bias"} & set(layer.changed)
    tolerance = 1e-2 if biased else 1e-5  # biases are rounded anew, norms are not
    torch.testing.assert_close(after, before, rtol=tolerance, atol=tolerance * float(before.std()))


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2"])
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (awq.Awq(), {"method": "awq", "group_size": 32}),
        (smoothquant.SmoothQuant(), {"method": "smoothquant", "bits": 8, "group_size": 0}),
    ],
)
def test_what_the_methods_fold_leaves_the_float_model(
    method: Any, settings: dict[str, Any], family: str, tmp_path: Path
) -> None:
    task = task_of(small_models.build(tmp_path, family), torch.float32, **settings)
    result: LayerResult = method.quantize(task)
    assert set(result.scaled) == set(MATRICES)
    assert set(result.vectors) >= {"attn_norm", "mlp_norm"}  # the outliers of this model ask for it
    folded = {**task.weights, **result.vectors, **result.scaled}
    batch = task.calibration().batch(0)
    with torch.no_grad():
        before, after = task.forward(batch, task.weights), task.forward(batch, folded)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5 * float(before.abs().max()))


def test_a_norm_that_is_zero_somewhere_stays_so(tmp_path: Path) -> None:
    checkpoint = small_models.build(tmp_path)
    task = task_of(checkpoint, torch.bfloat16, group_size=32)
    weights = {**task.weights, "attn_norm": task.weights["attn_norm"].clone()}
    weights["attn_norm"][3] = 0
    layer = FoldedLayer(checkpoint.spec, dict(weights), task.vector_dtypes)
    layer.fold("attn_norm", torch.full((64,), 2.0))
    assert layer.weights["attn_norm"][3] == 0
    assert torch.isfinite(layer.weights["q"]).all()
    assert torch.equal(layer.weights["q"][:, 3], weights["q"][:, 3])


def test_changed_norms_are_stored_as_the_checkpoint_stores_them(tmp_path: Path) -> None:
    checkpoint = small_models.build(tmp_path, dtype=torch.bfloat16)
    changes, report = small_models.quantized(checkpoint, rows(), method="awq")
    assert "layers.0.attn_norm" in report.changed
    for name in report.changed:
        stored = changes[name]
        assert isinstance(stored, StoredTensor)
        assert stored.dtype == "bf16"
        assert stored.to_float32().shape == checkpoint.tensor(name).to_float32().shape


def test_smoothquant_helps_where_activations_have_outliers(
    llama: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the same integers without the scaling."""
    task = task_of(llama, torch.float32, method="smoothquant", bits=8, group_size=0)
    target = task.calibration().through(lambda batch: task.forward(batch, task.weights))

    def error(result: LayerResult) -> float:
        weights = result.weights(task)
        apply = result.linear(weights)
        out = task.calibration().through(lambda batch: task.forward(batch, weights, apply))
        return float((out.batch(0).x - target.batch(0).x).square().mean())

    smooth = smoothquant.SmoothQuant().quantize(task)
    monkeypatch.setattr(smoothquant, "best_scaling", lambda *arguments: None)
    rough = smoothquant.SmoothQuant().quantize(task)
    assert rough.vectors == {}
    assert error(smooth) < 0.7 * error(rough)
