"""When looking on cannot help any more."""

from __future__ import annotations

import random

import numpy as np
import pytest

from trimtab.optimizer.evidence import Evidence
from trimtab.optimizer.quality_need import parse_quality

NEED = parse_quality("kl:mean<0.02; top1>=0.98")
TOKENS = 255  # of a window


def seen(num_windows: int, top1: float, kl: float = 0.001) -> Evidence:
    """So many windows of a variant; shares of windows scatter as if tokens were drawn."""
    draw, evidence = random.Random(1), Evidence()
    for _ in range(num_windows):
        evidence.tokens.append(TOKENS)
        evidence.agreements.append(sum(draw.random() < top1 for _ in range(TOKENS)))
        evidence.kl.append(np.full(TOKENS, kl))
        evidence.kl_sums.append(kl * TOKENS * draw.uniform(0.9, 1.1))
        evidence.losses.append(1.0)
        evidence.base_losses.append(1.0)
    return evidence


@pytest.mark.parametrize(("top1", "hopeless"), [(0.976, True), (0.984, False)])
def test_a_share_that_stays_below_its_limit_is_given_up(top1: float, hopeless: bool) -> None:
    evidence = seen(32, top1)
    status = {term.name: term.status for term in evidence.judge(NEED)}
    assert status["top1"] == "undecided"
    assert evidence.is_hopeless(NEED, 64) is hopeless


def test_a_few_windows_prove_no_hopelessness() -> None:
    assert not seen(4, 0.976).is_hopeless(NEED, 64)
    assert not Evidence().is_hopeless(NEED, 64)


def test_what_is_decided_is_not_hopeless() -> None:
    evidence = seen(64, 0.999)
    assert {term.status for term in evidence.judge(NEED)} == {"pass"}
    assert not evidence.is_hopeless(NEED, 64)


def test_a_mean_above_its_limit_is_given_up() -> None:
    need = parse_quality("kl:mean<0.02")
    evidence = seen(16, 0.9, kl=0.021)
    assert evidence.judge(need)[0].status == "undecided"
    assert evidence.is_hopeless(need, 20)
