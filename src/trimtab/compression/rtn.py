"""Round to nearest."""

from __future__ import annotations

from trimtab.compression.grids import round_matrix
from trimtab.compression.layer_task import HeadTask, LayerResult, LayerTask
from trimtab.numerics.stored import GroupedMatrix


class RoundToNearest:
    """With `search`, scales that clip a little where that loses less (least squared error)."""

    def quantize(self, task: LayerTask) -> LayerResult:
        search = bool(task.settings.search)
        return LayerResult(
            {
                name: round_matrix(task.weights[name], grid, search)
                for name, grid in task.grids.items()
            }
        )

    def quantize_head(self, task: HeadTask) -> GroupedMatrix:
        return round_matrix(task.head, task.grid, bool(task.settings.search))
