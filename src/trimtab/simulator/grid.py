"""Which steps are measured to calibrate: a designed grid, and random ones that no fit sees."""

from __future__ import annotations

import random
from dataclasses import dataclass

from trimtab.config import SchedulerConfig
from trimtab.executors.base import KVCapacity

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_BETWEEN = (3, 6, 12, 24, 48, 96)
_CHUNKS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_SHORT = 16  # tokens of context: about none
HELD_OUT = 16


@dataclass(frozen=True)
class Point:
    """One step: sequences that decode, and at most one chunk of a prompt."""

    decodes: tuple[int, ...] = ()  # positions that each of them sees, its own included
    start: int = 0  # of the chunk
    count: int = 0  # tokens of the chunk; 0: there is none
    emits: bool = True  # the chunk reaches the end of its prompt
    is_held_out: bool = False

    @property
    def num_rows(self) -> int:
        return len(self.decodes) + self.count

    def num_blocks(self, block_size: int) -> int:
        lengths = (*self.decodes, self.start + self.count)
        return sum(-(-length // block_size) for length in lengths)


def design(
    scheduler: SchedulerConfig, capacity: KVCapacity, longest: int, seed: int = 0
) -> list[Point]:
    """60 to 120 points up to `longest` positions of context, all of which this scheduler could plan
    and this cache hold."""
    contexts = sorted({min(longest, one) for one in (_SHORT, longest // 8, longest // 2, longest)})
    most = min(scheduler.max_num_requests, scheduler.max_batch_tokens)
    points = [
        Point(decodes=(context,) * batch)
        for batch in _BATCHES
        if batch <= most
        for context in contexts
    ]
    points += [Point(decodes=(contexts[-2],) * batch) for batch in _BETWEEN if batch <= most]
    for count in _up_to(_CHUNKS, min(scheduler.max_batch_tokens, longest)):
        starts = sorted({0, (longest - count) // 3, longest - count})
        points += [Point(start=start, count=count) for start in starts]
    points += [Point(count=count, emits=False) for count in (16, 64, 256) if count <= longest]
    for batch in (1, 4, 16, 48):
        for count in (8, 32, 128, 384):
            room = min(scheduler.max_batch_tokens - batch, longest)
            if batch <= most and count <= room and (batch + count > 16):
                points.append(Point((contexts[-2],) * batch, longest // 4, min(count, room)))
    points = [one for one in points if one.start + one.count <= longest]
    points += _random_points(scheduler, longest, seed)
    size, num_blocks = capacity.block_size, capacity.num_blocks
    return list(dict.fromkeys(one for one in points if one.num_blocks(size) <= num_blocks))


def _up_to(sizes: tuple[int, ...], most: int) -> list[int]:
    """Those below, and the most itself."""
    return [*(one for one in sizes if one < most), most]


def _random_points(scheduler: SchedulerConfig, longest: int, seed: int) -> list[Point]:
    """As a server meets them: a third decodes, a third prefills, a third both."""
    draw = random.Random(seed)
    most = min(scheduler.max_num_requests, scheduler.max_batch_tokens - 1, 64)

    def size(limit: int) -> int:
        return max(1, int(limit ** draw.random() + 0.5))

    points = []
    for place in range(HELD_OUT):
        batch = 0 if place % 3 == 1 else size(max(1, most))
        decodes = tuple(draw.randint(1, longest) for _ in range(batch))
        count = 0 if place % 3 == 0 else size(min(scheduler.max_batch_tokens - batch, longest))
        start = draw.randint(0, longest - count)
        points.append(Point(decodes, start, count, draw.random() < 0.6, is_held_out=True))
    return points
