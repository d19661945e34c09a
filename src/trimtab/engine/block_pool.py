"""The physical blocks of the KV cache: who holds them, what they contain, which goes next.

Every block is in exactly one of three places:

    held    reference count > 0: in the tables of that many requests; may also be published
    cached  count 0, published: still holds a prefix, in order of last use, reused oldest first
    plain   count 0, holds nothing; reused before any cached block

A *published* block can be found by the hash of its contents. Its contents never change while it is
published; taking a cached block for something else unpublishes it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence


class BlockPool:
    """Blocks 0 .. num_blocks - 1, all plain at first. Not thread-safe."""

    def __init__(
        self, num_blocks: int, on_evict: Callable[[int, bytes], None] | None = None
    ) -> None:
        """`on_evict`: called with a cached block and its hash when it is taken for something else,
        before anything is written."""
        self.num_blocks = num_blocks
        self._on_evict = on_evict
        self._references = [0] * num_blocks
        self._uses = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}
        self._plain = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return len(self._plain) + len(self._cached)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    def find(self, block_hash: bytes) -> int | None:
        """The published block with these contents. Hold it before anything else is taken."""
        return self._by_hash.get(block_hash)

    def references(self, block_id: int) -> int:
        return self._references[block_id]

    def is_published(self, block_id: int) -> bool:
        return self._hashes[block_id] is not None

    def hold(self, block_id: int) -> None:
        """One more reference to a published or held block."""
        if self._references[block_id] == 0:
            del self._cached[block_id]
        self._references[block_id] += 1

    def take(self) -> int:
        """A block with one reference and no meaningful contents. IndexError when none is free."""
        if self._plain:
            block_id = self._plain.pop()
        elif self._cached:
            block_id, _ = self._cached.popitem(last=False)
            block_hash = self._hashes[block_id]
            if self._on_evict is not None and block_hash is not None:
                self._on_evict(block_id, block_hash)
            self.unpublish(block_id)
        else:
            raise IndexError("no free block")
        self._references[block_id] = 1
        self._uses[block_id] += 1
        return block_id

    def uses(self, block_id: int) -> int:
        """How often it was taken: as long as this stays the same, so do its contents."""
        return self._uses[block_id]

    def release(self, block_id: int) -> None:
        """One reference less; the last one makes the block the most recently used free one."""
        if self._references[block_id] < 1:
            raise ValueError(f"block {block_id} is released more often than it was held")
        self._references[block_id] -= 1
        if self._references[block_id] == 0:
            if self._hashes[block_id] is None:
                self._plain.append(block_id)
            else:
                self._cached[block_id] = None

    def publish(self, block_id: int, block_hash: bytes) -> None:
        """Make a held block findable, unless equal contents are published already."""
        if self._by_hash.setdefault(block_hash, block_id) == block_id:
            self._hashes[block_id] = block_hash

    def unpublish(self, block_id: int) -> None:
        """Nobody finds the block any more; those who hold it keep it. Idempotent."""
        block_hash = self._hashes[block_id]
        if block_hash is None:
            return
        self._hashes[block_id] = None
        del self._by_hash[block_hash]
        if block_id in self._cached:
            del self._cached[block_id]
            self._plain.append(block_id)

    def unpublish_all(self) -> None:
        """Nobody finds any block any more."""
        for block_id in list(self._by_hash.values()):
            self.unpublish(block_id)

    def check(self, tables: Sequence[Sequence[int]]) -> None:
        """RuntimeError unless the books agree with these tables, which are all there are."""
        counted = [0] * self.num_blocks
        for table in tables:
            if len(set(table)) != len(table):
                raise RuntimeError(f"a block is twice in one table: {list(table)}")
            for block_id in table:
                counted[block_id] += 1
        if counted != self._references:
            raise RuntimeError(f"references {self._references}, but tables hold {counted}")
        plain, cached = set(self._plain), set(self._cached)
        held = {block_id for block_id, count in enumerate(counted) if count}
        if len(plain) != len(self._plain):
            raise RuntimeError("a block is twice among the plain free ones")
        if len(plain) + len(cached) + len(held) != self.num_blocks or plain & cached:
            raise RuntimeError(
                f"{len(plain)} plain + {len(cached)} cached + {len(held)} held"
                f" != {self.num_blocks} blocks"
            )
        if (plain | cached) & held:
            raise RuntimeError(f"blocks both free and held: {(plain | cached) & held}")
        published = {b: h for b, h in enumerate(self._hashes) if h is not None}
        if {h: b for b, h in published.items()} != self._by_hash:
            raise RuntimeError("the hash index and the blocks' hashes disagree")
        if plain & published.keys() or cached - published.keys():
            raise RuntimeError("a plain block is published, or a cached one is not")
