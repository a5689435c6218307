"""How a model is computed, apart from what it computes; may change at any resume."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Dtype of compute, recomputation and kernels."""

    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and of the weights as they are gathered; master weights are float32."""
    reduce_dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype in which gradients travel between devices; None: the compute dtype."""
    remat: Literal["nothing", "block", "projections"] = "nothing"
    """What the backward pass recomputes: nothing, whole blocks, or all but the projections."""
    attention_kernel: Literal["auto", "whole", "blocked"] = "auto"
    """How attention is computed; auto: whole scores for short rows, query blocks for long ones."""
    scan: Literal["auto", "scan", "unroll"] = "auto"
    """Compile one period of blocks and loop over it, or all of them; auto scans 8 periods or more.
    The parameters are the same in both."""


PROJECTION = "projection"
"""Checkpoint name of what a block's inward products give: q, k, v, gate and up."""
