"""Order as arithmetic: a keyed permutation of any length, computed for the numbers asked for.

A generalised Feistel network on pairs (Black and Rogaway 2002, "Ciphers with arbitrary finite
domains"): a number is written as two digits in mixed radix, and each in turn is shifted by a
keyed hash of the other.  Every such step can be undone, so the whole is a bijection; numbers that
leave the range walk on until they return to it.  There is no table and no state.  The hash is
the finaliser of SplitMix64 (Steele et al. 2014); an affine map would be cheaper, but its steady
stride shows in the loss.
"""

import numpy as np
from jaxtyping import Int, Integer, UInt64

ROUNDS = 4
_ONE = np.uint64(1)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_KEYS = np.arange(1, 2 * ROUNDS + 1, dtype=np.uint64) * _STEP


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
        key = mix(key + _STEP) ^ mix(part.astype(np.uint64) * _STEP + _ONE)
    return mix(key)


def permute(
    index: Integer[np.ndarray, " n"],
    length: int | Integer[np.ndarray, " n"],
    key: UInt64[np.ndarray, " n"],
) -> Int[np.ndarray, " n"]:
    """Where each index below ``length`` goes under the permutation of its key.

    Lengths go up to 2**52; each index may have its own, so that all rows of a batch are one call.
    """
    length = np.broadcast_to(np.asarray(length, np.uint64), index.shape)
    a = np.ceil(np.sqrt(length.astype(np.float64))).astype(np.uint64)
    b = (length + a - _ONE) // a  # a * b is at least the length, and hardly above it
    out = _shuffle(index.astype(np.uint64), a, b, key)
    while (outside := np.flatnonzero(out >= length)).size:
        out[outside] = _shuffle(out[outside], a[outside], b[outside], key[outside])
    return out.astype(np.int64)


def _shuffle(value: np.ndarray, a: np.ndarray, b: np.ndarray, key: np.ndarray) -> np.ndarray:
    """A bijection of range(a * b); a hash loses its last bit so that no sum can wrap."""
    left, right = np.divmod(value, b)
    for turn in range(0, 2 * ROUNDS, 2):
        left = (left + (mix((key + _KEYS[turn]) ^ right) >> _ONE)) % a
        right = (right + (mix((key + _KEYS[turn + 1]) ^ left) >> _ONE)) % b
    return left * b + right
