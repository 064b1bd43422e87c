"""Pictures that show the same: found by hash, and made sure of by looking at both."""
from __future__ import annotations

from collections import defaultdict

import numpy as np

from .looks import THUMB, Look

NEAR_BITS = 14
"""Bits of 64 in which hashes may differ: copies that were cut by 5 % have up to 13, other pictures 20 and more."""
NEAR = 0.98
"""Correlation at which two pictures count as one: copies have 0.981 and more, drawings of one creature on one background up to 0.975."""
OTHER_COLOURS = 12
OTHER_SHAPE = 0.12
CUTS = (0, 3, 5)
"""Pixels of 96 that are left away at each side, to find what was cut."""
ROWS, PAIRS = 512, 4096
"""Pictures and pairs that are compared at a time, which bounds the memory."""


def near_groups(looks: list[Look | None], sizes: list[tuple[int, int]], indices: list[int]) -> list[list[int]]:
    """Which of the pictures `indices` show the same, also slightly cut, mirrored, resized, saved again or of another brightness; in groups
    of at least two."""
    indices = [i for i in indices if looks[i] is not None and looks[i].contrast > 4]
    chosen = [looks[i] for i in indices]
    parent = list(range(len(indices)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    inner: dict[int, np.ndarray] = {}
    for first, second in _candidates(chosen, np.array([width / height for width, height in (sizes[i] for i in indices)])):
        open_pairs = [(a, b) for a, b in zip(first.tolist(), second.tolist()) if root(a) != root(b)]
        for i in {i for pair in open_pairs for i in pair} - set(inner):
            inner[i] = _inner_parts(chosen[i].grey_TT)
        for (a, b), alike in zip(open_pairs, _alike(inner, open_pairs)):
            if alike:
                parent[root(b)] = root(a)
    groups = defaultdict(list)
    for i in range(len(indices)):
        groups[root(i)].append(indices[i])
    return [group for group in groups.values() if len(group) > 1]


def _candidates(looks: list[Look], ratio_N: np.ndarray):
    """Pairs, as two arrays of positions, whose hashes, shapes and colours are close."""
    if len(looks) < 2:
        return
    bits_N64 = np.stack([np.unpackbits(look.hash_8) for look in looks]).astype(np.float32) * 2 - 1
    # mirrored, every second column of the frequencies changes its sign
    mirror = np.tile(np.array([1, -1] * 4, dtype=np.float32), 8)
    colour_N3 = np.stack([look.colours_CC3.mean((0, 1)) for look in looks]).astype(np.float32)
    for start in range(0, len(looks), ROWS):
        rows = bits_N64[start:start + ROWS]
        distance = np.minimum(64 - rows @ bits_N64.T, 64 - (rows * mirror) @ bits_N64.T) / 2
        first, second = np.nonzero(distance <= NEAR_BITS)
        first += start
        keep = first < second
        keep &= np.abs(ratio_N[first] - ratio_N[second]) <= OTHER_SHAPE * np.maximum(ratio_N[first], ratio_N[second])
        first, second = first[keep], second[keep]
        keep = _colour_difference(colour_N3[first], colour_N3[second]) <= OTHER_COLOURS
        first, second = first[keep], second[keep]
        for at in range(0, len(first), PAIRS):
            yield first[at:at + PAIRS], second[at:at + PAIRS]


def _colour_difference(a_P3: np.ndarray, b_P3: np.ndarray) -> np.ndarray:
    """How far apart mean colours are, in levels of 255, apart from a brightness that was added or multiplied."""
    brighter = a_P3.sum(1, keepdims=True) / np.maximum(b_P3.sum(1, keepdims=True), 1.0)
    return np.minimum(np.ptp(a_P3 - b_P3, axis=1), np.ptp(a_P3 - b_P3 * brighter, axis=1))


def _inner_parts(grey_TT: np.ndarray) -> np.ndarray:
    """`(cuts, 32, 32)`: the picture without more and more of its border, by the means of equal areas, with mean 0 and length 1."""
    parts = []
    for border in CUTS:
        part, edges = grey_TT.astype(np.float32), np.linspace(border, THUMB - border, 33)
        low = np.minimum(edges.astype(int), THUMB - 1)
        share = (edges - low).astype(np.float32)[:, None]
        for _ in (0, 1):
            sums = np.concatenate([np.zeros((1, part.shape[1]), np.float32), part.cumsum(0)])
            part = np.diff(sums[low] + share * (sums[low + 1] - sums[low]), axis=0).T
        part = part - part.mean()
        parts.append(part / (np.sqrt((part * part).sum()) + 1e-6))
    return np.stack(parts)


def _alike(inner: dict[int, np.ndarray], pairs: list[tuple[int, int]]) -> np.ndarray:
    """For each pair whether the pictures, one of them perhaps cut or mirrored, are nearly the same."""
    if not pairs:
        return np.zeros(0, bool)
    a, b = np.stack([inner[i] for i, _ in pairs]), np.stack([inner[i] for _, i in pairs])
    best = np.zeros(len(pairs), np.float32)
    for i, j in [(0, 0), *((0, j) for j in range(1, len(CUTS))), *((i, 0) for i in range(1, len(CUTS)))]:
        for other in (b[:, j], b[:, j, :, ::-1]):
            best = np.maximum(best, np.einsum("pyx,pyx->p", a[:, i], other))
    return best > NEAR
