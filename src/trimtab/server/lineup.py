"""Who goes into the engine process, and when: so that no request can take the others down for ever.

A request that ends the process whenever it runs would be resubmitted for ever, and everything that
runs beside it would die with it. Since answers are deterministic, such a request gets stuck: from
some token on, each process dies before it emits anything more for it (a *barren* death). But so do
others that were merely beside it. So when a request has had SUSPECT_DEATHS barren deaths in a row,
the next process runs a *trial*: requests go in one at a time, the most suspect first, each when the
one before has emitted something or left.

    process     A         B         C (trial)          D (trial)
    engine      p q r     p q r     p                  q, then r ...
    dies        yes       yes       yes: p was alone   no: everything goes on

A request is given up only when a process died while it was the only one there, and it had had
CONVICT_DEATHS barren deaths by then: nobody else could have done it.
"""

from __future__ import annotations

from collections.abc import Iterable

from trimtab.server.live_request import LiveRequest

SUSPECT_DEATHS = 2
CONVICT_DEATHS = 3


class Lineup:
    """A state machine without I/O. Each method that returns requests has marked them submitted, and
    wants them to be sent in that order."""

    def __init__(self) -> None:
        self._open = False  # there is a process that takes requests
        self._held: dict[str, LiveRequest] = {}  # live, not submitted; in the order of submission
        self._tried: LiveRequest | None = None  # the one on trial

    @property
    def in_trial(self) -> bool:
        return self._tried is not None

    def begin(self) -> list[LiveRequest]:
        """A process is ready."""
        self._open = True
        held = sorted(self._held.values(), key=lambda one: -one.barren_deaths)  # stable
        self._held = {one.request_id: one for one in held}
        if held and held[0].barren_deaths >= SUSPECT_DEATHS:
            return self._next()
        return self._submit(held)

    def arrive(self, one: LiveRequest) -> list[LiveRequest]:
        """A new request."""
        if self._open and not self.in_trial:
            return self._submit([one])
        self._held[one.request_id] = one
        return []

    def leave(self, one: LiveRequest) -> list[LiveRequest]:
        """It ended, however that came."""
        if self._held.get(one.request_id) is one:
            del self._held[one.request_id]
        return self._next() if one is self._tried else []

    def progress(self, one: LiveRequest) -> list[LiveRequest]:
        """The engine emitted something for it."""
        return self._next() if one is self._tried else []

    def end(self, live: Iterable[LiveRequest]) -> LiveRequest | None:
        """The process is gone, with those of the live requests that were submitted. All are held
        now, but for the one that is returned, if any: it must not be tried again."""
        self._open, self._tried = False, None
        before = list(self._held.values())
        lost = [one for one in live if one.submitted]
        for one in lost:
            one.barren_deaths = 0 if one.progressed else one.barren_deaths + 1
            one.submitted = one.progressed = False
        guilty = None
        if len(lost) == 1 and lost[0].barren_deaths >= CONVICT_DEATHS:
            guilty = lost.pop()
        self._held = {one.request_id: one for one in [*lost, *before]}
        return guilty

    def _next(self) -> list[LiveRequest]:
        """The next one on trial; the trial is over with the last one."""
        self._tried = next(iter(self._held.values()), None)
        return [] if self._tried is None else self._submit([self._tried])

    def _submit(self, requests: list[LiveRequest]) -> list[LiveRequest]:
        for one in requests:
            self._held.pop(one.request_id, None)
            one.submitted = True
            one.progressed = False
        return requests
