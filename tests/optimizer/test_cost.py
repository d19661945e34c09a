"""Prices of tokens add up to the bill."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.optimizer.cost import TokenSeconds, Traffic, cost_of

amounts = st.floats(1e-6, 1e3)


@settings(deadline=None, derandomize=True)
@given(
    st.builds(Traffic, amounts, amounts, amounts),
    st.builds(TokenSeconds, amounts, amounts, amounts),
    amounts,
)
def test_a_request_costs_what_its_tokens_cost(
    traffic: Traffic, seconds: TokenSeconds, rate: float
) -> None:
    cost = cost_of(3.6, rate, traffic, seconds)
    tokens = (
        traffic.computed_input * cost.per_million_input
        + traffic.cached_input * cost.per_million_cached
        + traffic.output * cost.per_million_output
    )
    assert abs(tokens / 1e6 / cost.per_request - 1) < 1e-9
    assert abs(cost.per_request * rate * 3600 / 3.6 - 1) < 1e-9


def test_by_hand() -> None:
    cost = cost_of(36.0, 10.0, Traffic(100, 50, 20), TokenSeconds(0.001, 0.0, 0.01))
    assert abs(cost.per_request - 0.001) < 1e-12
    assert abs(cost.per_million_output - 1e6 * 0.001 * (0.01 / 0.3)) < 1e-9
    assert cost.per_million_cached == 0
