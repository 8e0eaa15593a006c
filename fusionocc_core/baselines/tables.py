"""Histograms of labels per key, which back off to shorter keys where data is thin.

A key is a row of quantised features, the most telling first, four bits each. The estimate for a key of n features is
drawn to that of its first n - 1 features as if those had been seen ``STRENGTH`` times more (a Dirichlet prior); a key
that was not seen often enough takes its prefix's estimate as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.int64]

STRENGTH = 10.0
"""Voxels that the shorter key's estimate counts for."""
FEWEST = 4.0
"""Keys seen in fewer voxels are not kept."""
_MERGE_AT = 3_000_000


class KeyCounts:
    """How often each label was seen with each key.

    Args:
        classes: how many labels there are, at most 32.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._parts: list[tuple[Keys, NDArray[np.float64]]] = []
        self._rows = 0

    def add(self, keys_N: Keys, labels_N: NDArray[np.integer], weights_N: NDArray[np.float64]) -> None:
        """Count voxels."""
        self._put(*_summed(keys_N * 32 + labels_N, weights_N))

    def merge(self, other: KeyCounts) -> None:
        """Take over the counts of another."""
        for codes, weights in other._parts:
            self._put(codes, weights)

    def histograms(self) -> tuple[Keys, NDArray[np.float64]]:
        """Sorted keys (M,), and weights (M, K) of the labels."""
        codes, weights = self._merged()
        keys, row = np.unique(codes // 32, return_inverse=True)
        table = np.zeros((len(keys), self.classes))
        table[row, codes % 32] = weights
        return keys, table

    def _put(self, codes: Keys, weights: NDArray[np.float64]) -> None:
        self._parts.append((codes, weights))
        self._rows += len(codes)
        if self._rows > _MERGE_AT and len(self._parts) > 1:
            self._parts = [self._merged()]
            # What is left is there to stay; only what comes after it counts towards the next merge.
            self._rows = 0

    def _merged(self) -> tuple[Keys, NDArray[np.float64]]:
        if not self._parts:
            return np.zeros(0, np.int64), np.zeros(0)
        return _summed(*(np.concatenate(column) for column in zip(*self._parts, strict=True)))


@dataclass(frozen=True, kw_only=True)
class BackoffTable:
    """Log probabilities of the labels for keys of every length."""

    keys: tuple[Keys, ...]
    """Sorted; one array a length, from no feature to all."""
    log_p: tuple[NDArray[np.float16], ...]
    """(M, K) each."""

    @classmethod
    def fit(cls, counts: KeyCounts, features: int) -> BackoffTable:
        """From the counts of keys of so many features."""
        keys, table = counts.histograms()
        kept_keys, kept_p = [np.zeros(1, np.int64)], [_normal(table.sum(axis=0) + 0.5)[None]]
        for length in range(1, features + 1):
            prefixes, starts = np.unique(keys >> (4 * (features - length)), return_index=True)
            seen = np.add.reduceat(table, starts, axis=0) if len(starts) else np.zeros((0, counts.classes))
            keep = (seen.sum(axis=1) >= FEWEST) & np.isin(prefixes >> 4, kept_keys[-1])
            parent = np.searchsorted(kept_keys[-1], prefixes[keep] >> 4)
            kept_p.append(_normal(seen[keep] + STRENGTH * kept_p[-1][parent]))
            kept_keys.append(prefixes[keep])
        return cls(keys=tuple(kept_keys), log_p=tuple(np.log(p + 1e-7).astype(np.float16) for p in kept_p))

    def look_up(self, keys_N: Keys) -> NDArray[np.float32]:
        """Log probabilities (N, K)."""
        if len(self.keys) == 1:
            return np.broadcast_to(self.log_p[0].astype(np.float32), (len(keys_N), self.log_p[0].shape[1]))
        distinct = np.unique(keys_N)
        found = np.repeat(self.log_p[0].astype(np.float32), len(distinct), axis=0)
        features = len(self.keys) - 1
        for length in range(1, features + 1):
            if not len(self.keys[length]):
                break
            prefixes = distinct >> (4 * (features - length))
            place = np.searchsorted(self.keys[length], prefixes).clip(max=len(self.keys[length]) - 1)
            hit = self.keys[length][place] == prefixes
            found[hit] = self.log_p[length][place[hit]]
        # Quicker than the inverse of np.unique, whose argsort is slow.
        return np.asarray(found[np.searchsorted(distinct, keys_N)])


def _normal(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def _summed(codes: Keys, weights: NDArray[np.float64]) -> tuple[Keys, NDArray[np.float64]]:
    distinct, place = np.unique(codes, return_inverse=True)
    return distinct, np.bincount(place, weights, minlength=len(distinct)).astype(np.float64)
