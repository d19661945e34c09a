"""A budget of bits, spent where it saves the most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """One way to store a unit of matrices."""

    bits: int
    cost: float  # bits that it takes, all together
    loss: float  # that it causes


def allocate(units: Mapping[str, Sequence[Choice]], budget: float) -> dict[str, Choice]:
    """A choice for each unit; together they cost at most `budget`, which is enough for the cheapest
    of each. Greedy: from the cheapest, always the change that saves the most loss for its bits, if
    it still fits; but never worse than the best single number of bits for all."""
    chosen = {name: min(choices, key=lambda one: one.cost) for name, choices in units.items()}
    left = budget - sum(choice.cost for choice in chosen.values())
    while True:
        steps = [
            ((chosen[name].loss - choice.loss) / (choice.cost - chosen[name].cost), name, choice)
            for name, choices in units.items()
            for choice in choices
            if 0 < choice.cost - chosen[name].cost <= left and choice.loss < chosen[name].loss
        ]
        if not steps:
            break
        _, name, choice = max(steps, key=lambda step: (step[0], step[1]))
        left -= choice.cost - chosen[name].cost
        chosen[name] = choice
    candidates = [chosen, *_uniform(units, budget)]
    return min(candidates, key=lambda found: sum(choice.loss for choice in found.values()))


def _uniform(units: Mapping[str, Sequence[Choice]], budget: float) -> list[dict[str, Choice]]:
    """As many bits for every unit, where that fits."""
    found = []
    for bits in {choice.bits for choices in units.values() for choice in choices}:
        same = {
            name: choice
            for name, choices in units.items()
            for choice in choices
            if choice.bits == bits
        }
        if len(same) == len(units) and sum(one.cost for one in same.values()) <= budget:
            found.append(same)
    return found
