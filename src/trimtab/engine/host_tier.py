"""The second tier of the prefix cache: blocks evicted from the KV cache, in host memory.

    KV cache   block b taken for something else -> saved to slot s (its hash leads to s from now on)
    host       slots, least recently used first out
    KV cache   a prompt with that prefix comes -> a free block, loaded from s, published again

What is to be copied is only written down here, in order; the engine has the executor do it before
the step that was planned meanwhile. In that order each copy reads what it should: a block is saved
before anything is loaded or computed into it, a slot is read before it is used for another block.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from trimtab.executors.base import HostStore


@dataclass(slots=True)
class Copies:
    """Of one direction, no block and no slot twice, so that they may be done at once."""

    saves: bool  # from blocks to slots; else from slots to blocks
    block_ids: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)


class HostTier:
    """Slots 0 .. num_slots - 1. Not thread-safe."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.num_loaded = 0
        self._slots: OrderedDict[bytes, int] = OrderedDict()  # by hash, latest use last
        self._free = list(range(num_slots - 1, -1, -1))
        self._copies: list[Copies] = []

    @property
    def num_held(self) -> int:
        return len(self._slots)

    def holds(self, block_hash: bytes) -> bool:
        return block_hash in self._slots

    def touch(self, block_hash: bytes) -> None:
        """A held one, used now."""
        self._slots.move_to_end(block_hash)

    def save(self, block_id: int, block_hash: bytes) -> None:
        """Called when the block is taken for something else, before that is written."""
        if block_hash in self._slots:
            self._slots.move_to_end(block_hash)
            return
        if self._free:
            slot = self._free.pop()
        elif self._slots:
            _, slot = self._slots.popitem(last=False)
        else:
            return  # there are no slots at all
        self._slots[block_hash] = slot
        self._add(True, block_id, slot)

    def load(self, block_hash: bytes, block_id: int) -> None:
        """A held one, into a block that nobody else has."""
        self._slots.move_to_end(block_hash)
        self.num_loaded += 1
        self._add(False, block_id, self._slots[block_hash])

    def take_copies(self) -> list[Copies]:
        """What must be done, in this order, before the next step."""
        copies, self._copies = self._copies, []
        return copies

    def run_copies(self, store: HostStore) -> None:
        """Has the executor do them. If it fails, nothing is held any more, since nobody knows what
        is in the slots; the blocks that were to be loaded belong to the step that is not run."""
        try:
            for copies in self.take_copies():
                if copies.saves:
                    store.save(copies.block_ids, copies.slots)
                else:
                    store.load(copies.slots, copies.block_ids)
        except Exception:
            self.clear()
            raise

    def clear(self) -> None:
        """Nothing is held any more; copies written down are done nevertheless."""
        self._free += self._slots.values()
        self._slots.clear()

    def check(self) -> None:
        """RuntimeError unless every slot is either free or leads from one hash."""
        if sorted([*self._free, *self._slots.values()]) != list(range(self.num_slots)):
            raise RuntimeError(f"host slots: {self._free} free, {list(self._slots.values())} held")

    def _add(self, saves: bool, block_id: int, slot: int) -> None:
        latest = self._copies[-1] if self._copies else None
        if (
            latest is None
            or latest.saves is not saves
            or slot in latest.slots
            or block_id in latest.block_ids
        ):
            latest = Copies(saves)
            self._copies.append(latest)
        latest.block_ids.append(block_id)
        latest.slots.append(slot)
