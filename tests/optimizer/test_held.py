"""How large variants are held to be, before and after they are built."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trimtab import builtin
from trimtab.bench.footprint import Footprint, footprint
from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.base import Checkpoint
from trimtab.compression.quantize import quantize_checkpoint
from trimtab.compression.settings import QuantizeSettings
from trimtab.config import ExecutorConfig
from trimtab.errors import CheckpointError
from trimtab.executors.formats import choose_formats
from trimtab.optimizer import held
from trimtab.optimizer.held import formats_held
from trimtab.optimizer.variants import Variant

MODEL = open_checkpoint(builtin.target_path())


def size(variant: Variant, built: Checkpoint | None = None, model: Checkpoint = MODEL) -> Footprint:
    config = variant.executor_config()
    return footprint(model.spec, config, formats_held(variant, model, config, built))


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("held") / "int4"
    quantize_checkpoint(MODEL, path, QuantizeSettings("rtn", 4, 64))
    return open_checkpoint(path)


def test_a_checkpoint_of_integers_is_as_large_as_its_integers(quantized: Checkpoint) -> None:
    stored = size(Variant("stored"), model=quantized)
    assert stored.layer_weights == "int4"
    assert stored.read_bytes_per_step < 0.7 * size(Variant()).read_bytes_per_step


@pytest.mark.parametrize("budget", [None, 6.0])
def test_what_is_to_be_built_is_as_large_as_what_it_will_be(
    budget: float | None, quantized: Checkpoint
) -> None:
    before = size(Variant("int4", 64, "gptq", budget))
    assert before.layer_weights == "int4"
    layers = ("attention", "mlp")
    plain = size(Variant("int4", 64))
    assert [before.part_bytes[one] for one in layers] == [plain.part_bytes[one] for one in layers]
    after = size(Variant("int4", 64, "gptq", budget), built=quantized)
    assert after.part_bytes == before.part_bytes
    wide = size(Variant("int8", 0, "smoothquant"))
    assert wide.layer_weights == "int8"
    assert wide.part_bytes == size(Variant("int8")).part_bytes


def test_integers_that_the_kernels_do_not_take_are_an_error_on_a_cpu_only(
    monkeypatch: pytest.MonkeyPatch, quantized: Checkpoint
) -> None:
    def refuse(*_: object) -> None:
        raise CheckpointError("groups of 24")

    monkeypatch.setattr(held, "choose_formats", refuse)
    config = ExecutorConfig()
    with pytest.raises(CheckpointError, match="24"):
        formats_held(Variant("stored"), quantized, config)
    other = replace(config, device="torch-cpu")
    assert formats_held(Variant("stored"), quantized, other).layers


def test_floats_are_held_as_the_settings_say() -> None:
    config = Variant("int8", 32, kv_cache="int8").executor_config()
    assert formats_held(Variant("int8", 32), MODEL, config) == choose_formats(MODEL, config)
