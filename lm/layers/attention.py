"""Multi-head and grouped-query self-attention."""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from lm.errors import ConfigError
from lm.layers import cache as memory
from lm.layers.context import Context
from lm.layers.execution import DTYPES, OUT, QKV, Execution
from lm.layers.linear import Einsum
from lm.layers.norm import Norm
from lm.layers.placement import Placement
from lm.layers.position import Rope
from lm.ops.attention.attend import Choice, Target, attend, choose
from lm.ops.attention.pattern import Pattern, Where
from lm.ops.attention.zigzag import Shard
from lm.ops.rope import rotate

OPAQUE = ("splash", "cudnn")
"""Kernels that no compiler can split over devices: they run once on each."""


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Causal attention (Vaswani 2017); grouped where there are fewer key heads (Ainslie 2023)."""

    num_heads: int
    num_kv_heads: int
    head_width: int
    position: Rope | None = None
    window: int | None = None
    """How many positions back a token sees, itself among them; None: all."""
    qk_norm: Norm | None = None
    """Norm of each head's queries and keys (Dehghani 2023, arXiv:2302.05442)."""
    qkv_bias: bool = False
    out_bias: bool = False
    soft_cap: float | None = None
    """Bound of the scores (Gemma 2, arXiv:2408.00118)."""
    scale: float | None = None
    """Factor of the scores; None: 1/sqrt(head_width)."""

    def __post_init__(self) -> None:
        """Heads must group evenly.

        Raises:
            ConfigError: sizes that cannot be.
        """
        if min(self.num_heads, self.num_kv_heads, self.head_width) < 1:
            raise ConfigError("attention: num_heads, num_kv_heads and head_width must be positive.")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"attention: {self.num_heads} query heads cannot share {self.num_kv_heads} key "
                "heads evenly. Make num_heads a multiple of num_kv_heads."
            )
        if self.window is not None and self.window < 1:
            raise ConfigError(f"attention: window {self.window} sees nothing. Use 1 or more.")
        if self.position is not None and self.head_width % 2:
            raise ConfigError(
                f"attention: rotary positions need an even head_width, found {self.head_width}."
            )

    def choice(self, execution: Execution, platform: str, length: int, shards: int = 1) -> Choice:
        """Which kernel computes training rows of ``length`` tokens, and why.

        Raises:
            ConfigError: the kernel asked for cannot do it; says what would work.
        """
        dtype = DTYPES[execution.compute_dtype]
        kernel = execution.attention_kernel
        pattern = self.pattern(ordered=True)
        return choose(kernel, platform, length, self.head_width, dtype, pattern, shards=shards)

    def pattern(self, *, ordered: bool) -> Pattern:
        """Who sees whom; ``ordered`` where queries and keys are the same tokens."""
        return Pattern(
            window=self.window, scale=self.scale, soft_cap=self.soft_cap, ordered=ordered
        )

    def build(
        self, execution: Execution, placement: Placement, name: str | None = None
    ) -> "AttentionModule":
        """The module."""
        return AttentionModule(self, execution, placement, name=name)


class AttentionModule(nn.Module):
    """Attends within the tokens given, or over a cache to which they are added first."""

    config: Attention
    execution: Execution
    placement: Placement

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        context: Context,
        cache: memory.KvCache | None = None,
    ) -> tuple[Float[Array, "B T D"], memory.KvCache | None]:
        """The residual update of each token, and the cache with the tokens added."""
        c, D = self.config, x_BTD.shape[-1]
        N, K, H = c.num_heads, c.num_kv_heads, c.head_width
        flat = self.placement.flat
        inward = partial(Einsum, (D,), bias=c.qkv_bias, flat=flat)
        q_BTNH = inward((N, H), axes=("embed", "heads", "head"), name="query")(x_BTD)
        k_BTKH = inward((K, H), axes=("embed", "kv_heads", "head"), name="key")(x_BTD)
        v_BTKH = inward((K, H), axes=("embed", "kv_heads", "head"), name="value")(x_BTD)
        q_BTNH, k_BTKH, v_BTKH = (checkpoint_name(a, QKV) for a in (q_BTNH, k_BTKH, v_BTKH))
        if c.qk_norm is not None:
            q_BTNH = c.qk_norm.build("query_norm")(q_BTNH)
            k_BTKH = c.qk_norm.build("key_norm")(k_BTKH)
        if c.position is not None:
            q_BTNH = rotate(q_BTNH, context.angles[c.position])
            k_BTKH = rotate(k_BTKH, context.angles[c.position])
        q_BTNH = self.placement.constrain(q_BTNH, ("batch", "position", "heads", "head"))
        k_BTKH = self.placement.constrain(k_BTKH, ("batch", "position", "kv_heads", "head"))
        v_BTKH = self.placement.constrain(v_BTKH, ("batch", "position", "kv_heads", "head"))
        here = context.where
        if cache is None:
            keys, values = self.placement.whole_rows(k_BTKH), self.placement.whole_rows(v_BTKH)
            there = context.there
        else:
            cache = memory.remember(cache, k_BTKH, v_BTKH, here.positions)
            keys, values, there = cache.keys, cache.values, memory.where(cache)
        mixed_BTNH = self._mixed(q_BTNH, keys, values, here, there, decoding=cache is not None)
        out = Einsum((N, H), (D,), ("heads", "head", "embed"), c.out_bias, flat, name="out")
        return checkpoint_name(out(mixed_BTNH), OUT), cache

    def _mixed(
        self, q: Array, keys: Array, values: Array, here: Where, there: Where, *, decoding: bool
    ) -> Array:
        """Attention by the kernel that the platform and the rows allow."""
        c, execution, placement = self.config, self.execution, self.placement
        pattern = c.pattern(ordered=not decoding)
        shard = None if decoding else placement.row_shard()
        kernel = "auto" if decoding else execution.attention_kernel
        target = Target(kernel, placement.platform)

        def kernel_of(
            q: Array, k: Array, v: Array, query: Where, key: Where, index: Array | int
        ) -> Array:
            part = None if shard is None else Shard(index, shard.count)
            return attend(q, k, v, query, key, pattern, target, part)

        keys, values = keys.astype(q.dtype), values.astype(q.dtype)
        arrays = (q, keys, values, here, there, 0 if shard is None else shard.index)
        shards = 1 if shard is None else shard.count
        kernel, _ = choose(
            target.kernel,
            target.platform,
            q.shape[1] * shards,
            c.head_width,
            q.dtype,
            pattern,
            keys.shape[1],
            shards,
        )
        if kernel not in OPAQUE:
            return kernel_of(*arrays)
        tokens = ("batch", "position")
        queries, heads = (*tokens, "heads", "head"), (*tokens, "kv_heads", "head")
        inward = (queries, heads, heads, tokens, tokens, ())
        return placement.local(kernel_of, inward, queries)(*arrays)
