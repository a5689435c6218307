"""The one door of attention: which kernel runs, and the call of it."""

from typing import Literal

from jaxtyping import Array, Float

from lm.ops.attention import xla
from lm.ops.attention.pattern import Pattern, Where

Kernel = Literal["auto", "whole", "blocked"]


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    query: Where,
    key: Where,
    pattern: Pattern,
    kernel: Kernel = "auto",
) -> Float[Array, "B T N H"]:
    """Softmax attention of grouped query heads (Ainslie 2023, arXiv:2305.13245).

    Scores and softmax are float32; the result has the dtype of ``q_BTNH``.  A query that sees no
    key gives a mean of values, which nothing may read.

    Args:
        q_BTNH: queries; N is a multiple of the K key heads.
        k_BSKH: keys.
        v_BSKH: values.
        query: where the queries stand.
        key: where the keys stand.
        pattern: who sees whom.
        kernel: ``whole``, ``blocked``, or ``auto`` by length.
    """
    whole = kernel == "whole" or (kernel == "auto" and q_BTNH.shape[1] < 2 * xla.BLOCK)
    return xla.attend(q_BTNH, k_BSKH, v_BSKH, query, key, pattern, whole=whole)
