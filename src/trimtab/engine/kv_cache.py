"""Which request holds which blocks, and which blocks a new request can share.

    prompt   | full block | full block | full block | partial |
    hash      h0 = H(root, tokens)  h1 = H(h0, tokens)  ...     only full blocks have one
    lookup    hit .......... hit ...... miss -> computed again from here on

`root` is made of the executor's identity and the request's cache salt: blocks are never shared
across either. Blocks are published by `commit`, when the step that computed them has succeeded, so
nobody can ever read what was not written, and a failed step leaves no trace.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable

from trimtab.engine.block_pool import BlockPool
from trimtab.engine.host_tier import HostTier
from trimtab.engine.request import Request, RequestState


def cache_root(identity: str, salt: str) -> bytes:
    """The parent hash of first blocks."""
    parts = (
        hashlib.sha256(part.encode("utf-8", "surrogatepass")).digest() for part in (identity, salt)
    )
    return hashlib.sha256(b"".join(parts)).digest()


class KVCacheManager:
    """Not thread-safe. Every method either does all of its work or changes nothing."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        prefix_cache: bool = True,
        host: HostTier | None = None,
    ) -> None:
        """`host`: where blocks go that are evicted; who owns the manager has its copies done."""
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self.max_draft_tokens = 0  # for which requests may hold blocks
        self.host = host if prefix_cache else None
        self.pool = BlockPool(num_blocks, None if self.host is None else self.host.save)
        self._pending: dict[bytes, Request] = {}

    @property
    def num_free_blocks(self) -> int:
        return self.pool.num_free

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def admit(self, request: Request, reserve: int) -> bool:
        """Give a request that holds nothing blocks for all of its tokens, cached ones first.

        False, with nothing changed, unless `reserve` free blocks remain afterwards. On success
        `num_computed_tokens` counts the tokens found in the cache; at least one is left to compute.
        """
        hits = self._cached_prefix(request)
        num_new = self.blocks_for(request.num_needed) - len(hits)
        hits_free = sum(self.pool.references(block_id) == 0 for block_id in hits)
        if num_new + reserve > self.pool.num_free - hits_free:
            return False
        # Hits are held before anything is taken: taking may evict cached blocks.
        for block_id in hits:
            self.pool.hold(block_id)
        request.block_ids = array("i", hits)
        num_cached = len(hits) + self._load_from_host(request)
        num_new -= len(request.block_ids) - len(hits)
        request.block_ids.extend(self.pool.take() for _ in range(num_new))
        request.num_computed_tokens = num_cached * self.block_size
        request.num_published_blocks = num_cached
        self._announce(request)
        return True

    def grow(self, request: Request) -> bool:
        """Room for the newest tokens. False, with nothing changed, if too few blocks are free."""
        num_needed = request.num_needed
        if num_needed <= len(request.block_ids) * self.block_size:
            return True
        num_new = self.blocks_for(num_needed) - len(request.block_ids)
        if num_new > self.pool.num_free:
            return False
        request.block_ids.extend(self.pool.take() for _ in range(num_new))
        return True

    def grow_for_draft(self, request: Request, num_tokens: int, spare: int) -> int:
        """Room behind the newest tokens for a draft of so many, as long as `spare` blocks stay free
        or the blocks held already suffice. How many fit. It stays with the request."""
        held = len(request.block_ids)
        wanted = self.blocks_for(request.num_needed + num_tokens) - held
        num_new = max(0, min(wanted, self.pool.num_free - spare))
        request.block_ids.extend(self.pool.take() for _ in range(num_new))
        room = len(request.block_ids) * self.block_size - request.num_needed
        return min(num_tokens, room)

    def commit(self, request: Request) -> None:
        """Publish the blocks that are now completely computed.

        Only called with `num_computed_tokens` that a finished step has written, all of them
        accepted tokens of the request.
        """
        num_full = request.num_computed_tokens // self.block_size
        if not self.prefix_cache or num_full <= request.num_published_blocks:
            return
        self._extend_hashes(request, num_full)
        for index in range(request.num_published_blocks, num_full):
            block_hash = request.block_hashes[index]
            self.pool.publish(request.block_ids[index], block_hash)
            self._withdraw(request, block_hash)
        request.num_published_blocks = num_full

    def release(self, request: Request, poisoned: bool = False) -> None:
        """Give back every block, the tail first, so that a chain is evicted from its end.

        `poisoned`: what the blocks hold is not to be trusted; none of them stays findable.
        """
        for block_hash in request.block_hashes[request.num_published_blocks :]:
            self._withdraw(request, block_hash)
        for block_id in reversed(request.block_ids):
            if poisoned:
                self.pool.unpublish(block_id)
            self.pool.release(block_id)
        request.block_ids = array("i")
        request.num_computed_tokens = 0
        request.num_published_blocks = 0

    def reset_prefix_cache(self) -> None:
        """No request finds what was computed so far; those that run keep what they hold."""
        self.pool.unpublish_all()
        if self.host is not None:
            self.host.clear()

    def is_being_computed(self, request: Request) -> bool:
        """Whether a running request is about to publish the next block that this one lacks."""
        if not self.prefix_cache or not self._pending:
            return False
        index = len(self._cached_prefix(request))
        if index >= self._num_sharable(request):
            return False
        return request.block_hashes[index] in self._pending

    def check(self, running: Iterable[Request]) -> None:
        """RuntimeError unless every invariant holds; `running` are all requests with blocks."""
        requests = list(running)
        self.pool.check([request.block_ids for request in requests])
        for request in requests:
            name = request.request_id
            if request.state is not RequestState.RUNNING:
                raise RuntimeError(f"{name}: {request.state} but holds blocks")
            num_blocks = len(request.block_ids)
            if not self.blocks_for(request.num_computed_tokens) <= num_blocks:
                raise RuntimeError(f"{name}: more tokens computed than its blocks hold")
            if num_blocks > self.blocks_for(request.num_tokens + self.max_draft_tokens):
                raise RuntimeError(f"{name}: holds more blocks than its tokens need")
            first_writable = request.num_computed_tokens // self.block_size
            for block_id in request.block_ids[first_writable:]:
                if self.pool.references(block_id) != 1 or self.pool.is_published(block_id):
                    raise RuntimeError(f"{name}: would write into shared block {block_id}")
        if self.host is not None:
            self.host.check()
        strangers = [r.request_id for r in self._pending.values() if r not in requests]
        if strangers:
            raise RuntimeError(f"blocks announced by requests that do not run: {strangers}")

    def _cached_prefix(self, request: Request) -> list[int]:
        """The blocks that hold a prefix of it, at most `_num_sharable`."""
        if not self.prefix_cache:
            return []
        limit = self._num_sharable(request)
        self._extend_hashes(request, limit)
        hits: list[int] = []
        for block_hash in request.block_hashes[:limit]:
            block_id = self.pool.find(block_hash)
            if block_id is None:
                break
            hits.append(block_id)
        return hits

    def _load_from_host(self, request: Request) -> int:
        """Blocks behind those found here, as far as the host holds them: taken, published as if
        they were computed, and loaded before the next step. How many."""
        host, first = self.host, len(request.block_ids)
        if host is None:
            return 0
        wanted: list[bytes] = []
        for block_hash in request.block_hashes[first : self._num_sharable(request)]:
            if not host.holds(block_hash) or self.pool.find(block_hash) is not None:
                break
            host.touch(block_hash)  # what is saved meanwhile must not take its slot
            wanted.append(block_hash)
        num_loaded = 0
        for block_hash in wanted:
            block_id = self.pool.take()
            request.block_ids.append(block_id)
            if not host.holds(block_hash):
                break  # there were few slots: it is computed again
            host.load(block_hash, block_id)
            self.pool.publish(block_id, block_hash)
            num_loaded += 1
        return num_loaded

    def _num_sharable(self, request: Request) -> int:
        """Leading blocks without a row whose logits are needed: the last token's, and those that
        score the prompt or forced tokens."""
        owed = request.owed_rows
        return (owed.start if owed else request.num_tokens - 1) // self.block_size

    def _extend_hashes(self, request: Request, num_full: int) -> None:
        hashes, size = request.block_hashes, self.block_size
        for index in range(len(hashes), num_full):
            parent = hashes[-1] if hashes else request.cache_root
            tokens = request.token_ids[index * size : (index + 1) * size]
            hashes.append(hashlib.sha256(parent + tokens.tobytes()).digest())

    def _announce(self, request: Request) -> None:
        if self.prefix_cache:
            for block_hash in request.block_hashes[request.num_published_blocks :]:
                self._pending.setdefault(block_hash, request)

    def _withdraw(self, request: Request, block_hash: bytes) -> None:
        if self._pending.get(block_hash) is request:
            del self._pending[block_hash]
