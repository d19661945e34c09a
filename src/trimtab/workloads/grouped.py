"""Samples in groups, one for each request, in the order of their schedule: as arrays, since a load
has millions of gaps and the optimizer simulates thousands of loads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trimtab.workloads.records import NAN, RequestRecord
from trimtab.workloads.statistics import worth

Floats = npt.NDArray[np.float64]


def chunk_gaps(record: RequestRecord) -> Floats:
    """As `RequestRecord.chunk_gaps`."""
    return np.diff(np.asarray(record.token_times, np.float64))


def itls(record: RequestRecord) -> Floats:
    """As `RequestRecord.itls`."""
    gaps, counts = chunk_gaps(record), np.asarray(record.token_counts[1:], np.int64)
    return gaps if (counts == 1).all() else np.repeat(gaps / counts, counts)


def stall(record: RequestRecord) -> float:
    """The largest of its chunk gaps; not a number without any."""
    return float(chunk_gaps(record).max()) if len(record.token_times) > 1 else NAN


@dataclass(frozen=True)
class Grouped:
    values: Floats  # of all groups, one after the other
    sizes: npt.NDArray[np.int64]  # of each group

    @classmethod
    def of(cls, groups: Iterable[Iterable[float]]) -> Grouped:
        arrays = [np.asarray(group, np.float64) for group in groups]
        sizes = np.array([len(array) for array in arrays], np.int64)
        return cls(np.concatenate(arrays) if arrays else np.empty(0), sizes)

    def without_nan(self) -> Grouped:
        kept = ~np.isnan(self.values)
        return Grouped(self.values[kept], self.sums(kept).astype(np.int64))

    def each(self, of_groups: Floats) -> Floats:
        """The group's value at each sample."""
        return np.repeat(of_groups, self.sizes)

    def sums(self, of_samples: npt.NDArray[np.generic]) -> Floats:
        """Over each group; 0 of an empty one."""
        ids = np.repeat(np.arange(len(self.sizes)), self.sizes)
        return np.bincount(ids, of_samples, len(self.sizes)).astype(np.float64)

    def worth(self, is_below: npt.NDArray[np.bool_]) -> float:
        """How many independent samples these are worth, by which of them are below a limit."""
        kept = self.sizes > 0
        return worth(self.sums(is_below)[kept].tolist(), self.sizes[kept].tolist())
