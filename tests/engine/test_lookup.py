"""The lookup proposer: what it drafts, what it learns from others, what it forgets."""

from __future__ import annotations

import random
from array import array

import pytest

from trimtab.engine.kv_cache import cache_root
from trimtab.engine.request import Request
from trimtab.engine.sampling_params import SamplingParams
from trimtab.engine.speculation import lookup
from trimtab.engine.speculation.lookup import LookupProposer, SharedLookup
from trimtab.engine.speculation.proposer import NUM_CONFIDENCES, Draft


def ask(prompt: list[int], completion: list[int] | None = None, salt: str = "") -> Request:
    return Request(
        request_id="one",
        params=SamplingParams(),
        token_ids=array("i", prompt + (completion or [])),
        num_prompt_tokens=len(prompt),
        max_total_tokens=1_000_000,
        stop_ids=frozenset(),
        seed=0,
        order=(0, 0),
        cache_root=cache_root("model", salt),
    )


def propose(
    proposer: LookupProposer, *requests: Request, limit: int = 4, wanted: int = 99
) -> list[Draft]:
    drafts = [Draft(one, limit, lambda draft: len(draft.token_ids) < wanted) for one in requests]
    proposer.propose(drafts)
    return drafts


def test_it_drafts_what_followed_before() -> None:
    draft = propose(LookupProposer(), ask([1, 2, 3, 4, 5, 6, 7, 2, 3]))[0]
    assert draft.token_ids == [4, 5, 6, 7]
    assert draft.confidences == [3, 5, 6, 7]  # two tokens equal, then three, four, five


def test_the_limit_and_the_want_are_kept() -> None:
    request = ask([1, 2, 3, 4, 5, 6, 7, 2, 3])
    proposer = LookupProposer()
    assert propose(proposer, request, limit=1)[0].token_ids == [4]
    assert propose(proposer, request, wanted=2)[0].token_ids == [4, 5]


def test_without_a_match_there_is_no_draft() -> None:
    drafts = propose(LookupProposer(), ask([1, 2, 3]), ask([7]), ask([5, 6, 5]))
    assert [draft.token_ids for draft in drafts] == [[], [], [6, 5, 6, 5]]


def test_a_loop_is_drafted_on_and_ever_surer() -> None:
    request = ask([9], [1, 2, 3] * 5)
    draft = propose(LookupProposer(), request, limit=32)[0]
    assert draft.token_ids == ([1, 2, 3] * 11)[:32]
    assert draft.confidences[0] == 12
    assert draft.confidences[-1] == NUM_CONFIDENCES - 1
    assert draft.confidences == sorted(draft.confidences)


def test_confidence_is_in_what_earlier_occurrences_agree_on() -> None:
    once = ask([1, 2, 3, 9, 1, 2])
    agreed = ask([1, 2, 3, 9, 1, 2, 3, 8, 1, 2])
    disputed = ask([1, 2, 3, 9, 1, 2, 4, 8, 1, 2])
    often = ask([1, 2, 3, 9, 8, 1, 2, 3, 9, 7, 1, 2, 3, 9, 6, 1, 2])
    settled = ask([1, 2, 5, 1, 2, 3, 9, 8, 1, 2, 3, 9, 7, 1, 2, 3, 9, 6, 1, 2])
    drafts = propose(LookupProposer(), once, agreed, disputed, often, settled, limit=2)
    assert [draft.token_ids for draft in drafts] == [[3, 9], [3, 8], [4, 8], [3, 9], [3, 9]]
    assert [draft.confidences for draft in drafts] == [[3, 5], [8, 1], [1, 5], [11, 11], [4, 11]]


def test_it_follows_a_request_that_grows() -> None:
    """Step for step the same as a proposer that sees it for the first time; with pauses."""
    rng = random.Random(0)
    proposer = LookupProposer()
    requests = [ask([rng.randrange(4) for _ in range(20)]) for _ in range(3)]
    for _ in range(60):
        asked = [request for request in requests if rng.random() < 0.7]
        for draft in propose(proposer, *asked, limit=6):
            fresh = propose(LookupProposer(), draft.request, limit=6)[0]
            assert draft.token_ids == fresh.token_ids
            assert draft.confidences == fresh.confidences
        for request in requests:
            request.token_ids.extend(rng.randrange(4) for _ in range(rng.randrange(4)))


def test_a_long_prompt_is_taken_in_over_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "STEP_TOKENS", 100)
    proposer = LookupProposer()
    long, short = ask([1, 2, 3, 4] * 60), ask([1, 2, 1])
    had_drafts = [
        [bool(draft.token_ids) for draft in propose(proposer, long, short)] for _ in range(4)
    ]
    assert had_drafts == [[False, False], [False, False], [True, True], [True, True]]


def test_other_answers_are_not_looked_into_unless_asked_for() -> None:
    proposer = LookupProposer()
    proposer.forget(ask([9], [1, 2, 3, 4, 5]))
    assert propose(proposer, ask([1, 2]))[0].token_ids == []


def test_answers_are_shared_within_a_namespace_alone() -> None:
    proposer = LookupProposer(SharedLookup())
    proposer.forget(ask([7, 8, 9], [1, 2, 3, 4, 5], salt="ours"))
    ours, theirs = ask([1, 2], salt="ours"), ask([1, 2], salt="theirs")
    prompt = ask([7, 8], salt="ours")  # of an answer, its prompt is not kept
    drafts = propose(proposer, ours, theirs, prompt)
    assert [draft.token_ids for draft in drafts] == [[3, 4, 5], [], []]
    ours.token_ids.append(3)
    theirs.token_ids.append(3)
    proposer.forget(ask([1], [2, 3, 6], salt="ours"))
    assert [draft.token_ids for draft in propose(proposer, ours, theirs)] == [[4, 5], []]


def test_a_full_index_is_begun_anew() -> None:
    proposer = LookupProposer(SharedLookup(max_tokens=12))
    request = ask([1, 2])
    proposer.forget(ask([9], [1, 2, 3, 4, 5]))
    assert propose(proposer, request)[0].token_ids == [3, 4, 5]
    proposer.forget(ask([9], [6, 9, 9, 1, 2, 7]))  # would be 13 tokens with the separators
    assert propose(proposer, request)[0].token_ids == [7]
    proposer.forget(ask([9], [5, 5, 5, 5, 5]))
    assert propose(proposer, request)[0].token_ids == []
    proposer.forget(ask([9], [1, 2, *range(20, 40)]))  # half of it at most
    request.token_ids.append(20)
    assert propose(proposer, request, limit=9)[0].token_ids == [21, 22, 23]


def test_the_namespace_that_nobody_used_is_dropped() -> None:
    proposer = LookupProposer(SharedLookup(max_namespaces=2))
    requests = {salt: ask([1, 2], salt=salt) for salt in "abc"}

    def known() -> list[str]:
        return [salt for salt in "abc" if propose(proposer, requests[salt])[0].token_ids]

    proposer.forget(ask([9], [1, 2, 3], salt="a"))
    proposer.forget(ask([9], [1, 2, 3], salt="b"))
    assert known() == ["a", "b"]
    propose(proposer, requests["a"])
    proposer.forget(ask([9], [1, 2, 3], salt="c"))
    assert known() == ["a", "c"]


def test_impossible_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens"):
        SharedLookup(max_tokens=1)


def test_ended_requests_are_forgotten() -> None:
    proposer = LookupProposer(SharedLookup())
    request = ask([1, 2, 1])
    assert propose(proposer, request)[0].token_ids == [2, 1, 2, 1]
    proposer.forget(request)
    proposer.forget(ask([4, 4]))  # never seen, nothing answered
    assert not proposer._lookups
    proposer.close()
