"""Steps filled up to the sizes that are captured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cpu_models import Passage, as_int32, greedy, make_batch, memory_model

from trimtab.config import ExecutorConfig
from trimtab.executors.gpu.executor import TorchExecutor
from trimtab.executors.gpu.graphs import decode_shapes
from trimtab.executors.gpu.padding import ROWS, Shape, contexts, padded, shape_of
from trimtab.executors.gpu.rows import StagedRows, no_rows, row_arrays
from trimtab.executors.gpu.staging import Staging

CPU = torch.device("cpu")


def test_shapes_are_the_smallest_that_fit() -> None:
    assert contexts(512) == [512]
    assert contexts(20_000) == [1024, 4096, 16384, 20_000]

    def shape(counts: list[int], computed: int = 0) -> Shape | None:
        pieces = [
            (Passage([0] * (computed + count), list(range(200)), computed), count)
            for count in counts
        ]
        return shape_of(make_batch(pieces), 3000)

    assert shape([1]) == Shape(1, 1, 1024)
    assert shape([1, 1, 1]) == Shape(4, 1, 1024)
    assert shape([1, 5, 1], 1020) == Shape(8, 8, 3000)
    assert shape([18]) is None
    assert shape([1] * 256) == Shape(256, 1, 1024)
    assert shape([1] * 257) is None


def test_decode_shapes_reach_the_largest_batch_once() -> None:
    shapes = decode_shapes(10, 2000)
    assert [shape.num_rows for shape in shapes] == [16, 8, 4, 2, 1] * 2
    assert [shape.max_context for shape in shapes] == [2000] * 5 + [1024] * 5
    assert {shape.num_rows for shape in decode_shapes(1000, 1024)} == set(ROWS)


@pytest.mark.parametrize("counts", [[1], [1, 2, 1], [3], [1] * 7, []])
def test_rows_that_fill_up_are_sequences_of_the_reserved_block(counts: list[int]) -> None:
    passages = [Passage([5] * 40, [3 * i, 3 * i + 1, 3 * i + 2], 20) for i in range(len(counts))]
    arrays = no_rows()
    if counts:
        arrays = row_arrays(make_batch(list(zip(passages, counts, strict=True))))
    own = len(arrays["token_ids"])
    filled = padded(arrays, 8)
    staging = Staging(1 << 16, CPU)
    views, in_place = staging.upload(filled)
    assert in_place
    starts = filled["seq_starts"]
    assert len(starts) == 9
    assert starts[-1] == 8
    assert (np.diff(starts)[len(counts) :] <= 1).all()
    for row, sequence in enumerate(filled["sequences"]):
        assert starts[sequence] <= row < starts[sequence + 1]
    rows = StagedRows(
        **{name: views[name] for name in filled if name not in ("block_ids", "logit_rows")},
        block_ids=staging.beyond(views["block_ids"]),
        max_rows=4,
        max_context=64,
    ).on_device(torch.zeros(4, dtype=torch.int32), 77, 16)
    assert rows.block_tables.shape == (8, 4)
    assert (rows.slots[own:] == 77 * 16).all()
    assert (rows.token_ids[own:] == 0).all()
    for index, passage in enumerate(passages):
        assert rows.block_tables[index].tolist()[:3] in ([*passage.blocks[:2], 77], passage.blocks)
    for row in range(own):
        passage = passages[filled["sequences"][row]]
        position = int(filled["positions"][row])
        assert rows.slots[row] == passage.blocks[position // 16] * 16 + position % 16


def test_arrays_of_the_same_lengths_lie_at_the_same_addresses() -> None:
    staging = Staging(1 << 12, CPU)
    arrays = {"a": as_int32([1, 2, 3]), "b": np.array([2**64 - 1], np.uint64)}
    first, _ = staging.upload(arrays)
    addresses = [view.data_ptr() for view in first.values()]
    second, _ = staging.upload(arrays | {"c": as_int32([])})
    assert [view.data_ptr() for view in second.values()][:2] == addresses
    assert second["a"].tolist() == [1, 2, 3]
    assert second["b"].tolist() == [-1]
    large, in_place = staging.upload({"a": np.arange(2000, dtype=np.int32)})
    assert not in_place
    assert large["a"].tolist() == list(range(2000))


def test_what_fills_up_leaves_no_trace_and_shapes_can_run_beforehand() -> None:
    config = ExecutorConfig(device="torch-cpu", num_blocks=6)
    plain = TorchExecutor(memory_model(1), config)
    filled = TorchExecutor(memory_model(1), config, fill_up=True)
    seen: list[str] = []
    filled.capture(3, seen.append)
    assert seen[0].startswith("capturing graph 1 of 6: 4 rows, 4096 tokens")
    everything = as_int32(range(6))
    assert (filled.export_blocks(everything) == plain.export_blocks(everything)).all()
    passages = [Passage([4, 5, 6], [2]), Passage([7, 8], [5])]
    batch = make_batch(
        [(passages[0], 3), (passages[1], 2)],
        logit_rows=as_int32([2, 4]),
        sampling=greedy(2),
        hidden_rows=as_int32([0, 4]),
    )
    ours, theirs = filled.execute(batch), plain.execute(batch)
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    assert ours.logits is not None
    assert (ours.logits == theirs.logits).all()
    assert ours.hidden is not None
    assert (ours.hidden == theirs.hidden).all()
    assert (filled.export_blocks(everything) == plain.export_blocks(everything)).all()
