"""Muon: momentum whose update is orthogonalised by a matrix iteration.

Sources: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the
coefficients are those of Amsel et al., "The Polar Express", 2025.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import Executor

import torch
from torch import Tensor

COEFFICIENTS = (
    (8.287212018, -23.595886519, 17.300387313),
    (4.107059112, -2.947849917, 0.544843108),
    (3.948690853, -2.908902116, 0.551819139),
    (3.318419657, -2.488488024, 0.510048940),
)
MATRICES_A_JOB = 4


def orthogonalise(updates: Tensor) -> Tensor:
    """Approximately U V^T of each matrix of a stack [count, rows, columns]."""
    x = updates / (updates.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for a, b, c in COEFFICIENTS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """For matrices only. ``lr`` is the spectral norm of a step, scaled up for tall matrices.

    With a pool, stacks of a few matrices go through its threads.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        pool: Executor | None = None,
    ) -> None:
        self.pool = pool
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update from the gradients now held; matrices of one shape go through together."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            size = MATRICES_A_JOB if self.pool else len(group["params"])
            stacks = [
                parameters[start : start + size]
                for parameters in by_shape.values()
                for start in range(0, len(parameters), size)
            ]
            apply = self.pool.map if self.pool else map
            list(apply(lambda stack, group=group: self._step_stack(stack, group), stacks))

    @torch.no_grad()
    def _step_stack(self, parameters: list[Tensor], group: dict) -> None:
        updates = []
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            updates.append(parameter.grad.lerp(state["momentum"], group["momentum"]))
        steps = orthogonalise(torch.stack(updates))
        rows, columns = parameters[0].shape
        scale = group["lr"] * max(1.0, rows / columns) ** 0.5
        for parameter, step in zip(parameters, steps, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(step, alpha=-scale)
