"""Order as arithmetic: a keyed permutation of any length, computed for the numbers asked for.

A generalised Feistel network on pairs (Black and Rogaway 2002, "Ciphers with arbitrary finite
domains"): a number is written as two digits in mixed radix, and each in turn is shifted by a
keyed hash of the other.  Every such step can be undone, so the whole is a bijection; numbers that
leave the range walk on until they return to it.  There is no table and no state.  The hash is
the finaliser of SplitMix64 (Steele et al. 2014); an affine map would be cheaper, but its steady
stride shows in the loss.
"""

import math

import numpy as np
from jaxtyping import Int, Integer, UInt64

ROUNDS = 4
_STEP = np.uint64(0x9E3779B97F4A7C15)


def mix(value: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """A bijective hash of 64 bits; arrays of at least one dimension wrap without a warning."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def key_of(
    seed: int, source: Integer[np.ndarray, " n"], epoch: Integer[np.ndarray, " n"]
) -> UInt64[np.ndarray, " n"]:
    """The key of an epoch of a source."""
    key = np.full(source.shape, seed % 2**64, np.uint64)
    for part in (source, epoch):
        key = mix(key + _STEP) ^ mix(part.astype(np.uint64) * _STEP + np.uint64(1))
    return mix(key)


def permute(
    index: Integer[np.ndarray, " n"], length: int, key: UInt64[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """Where each index in ``range(length)`` goes under the permutation of its key."""
    a = math.isqrt(max(length - 1, 0)) + 1
    b = -(-length // a)  # a * b is at least the length, and less than a above it
    out = _shuffle(index.astype(np.uint64), a, b, key)
    while (outside := out >= length).any():
        out[outside] = _shuffle(out[outside], a, b, key[outside])
    return out.astype(np.int64)


def _shuffle(value: np.ndarray, a: int, b: int, key: np.ndarray) -> np.ndarray:
    """A bijection of range(a * b)."""
    A, B = np.uint64(a), np.uint64(b)
    left, right = np.divmod(value, B)
    for _ in range(ROUNDS):
        key = mix(key + _STEP)
        left = (left + mix(key ^ right) % A) % A
        key = mix(key + _STEP)
        right = (right + mix(key ^ left) % B) % B
    return left * B + right
