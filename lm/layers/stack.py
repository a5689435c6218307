"""A period of blocks, repeated: parameters are stacked; one period is compiled and looped over."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from lm.batch import Leaf, Params
from lm.errors import ConfigError
from lm.layers.block import Block
from lm.layers.cache import KvCache
from lm.layers.context import Context
from lm.layers.execution import GATHERED, HOST_MEMORY, NAMES, Execution
from lm.layers.parameter import applied
from lm.layers.placement import Placement

Caches = tuple[KvCache, ...]
"""A cache for each block of a period, each with a leading ``repeats`` dimension."""
SCAN_FROM = 8
"""Under ``scan="auto"``, stacks of at least this many repeats are looped over; shorter ones are
unrolled, which compiles slower and, on a CPU, runs 5 to 10 % faster."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """``repeats`` times the same sequence of blocks, each time with parameters of its own."""

    blocks: tuple[Block, ...]
    repeats: int

    def __post_init__(self) -> None:
        """A stack has blocks.

        Raises:
            ConfigError: none.
        """
        if not self.blocks or self.repeats < 1:
            raise ConfigError(
                f"stack: {len(self.blocks)} blocks repeated {self.repeats} times is no model. "
                "Give at least one block and one repeat."
            )

    def period(self, execution: Execution, placement: Placement) -> "PeriodModule":
        """The module of one period; its parameters have no ``layers`` dimension."""
        return PeriodModule(self.blocks, execution, placement)


class PeriodModule(nn.Module):
    """The blocks of one period, in order."""

    blocks: tuple[Block, ...]
    execution: Execution
    placement: Placement

    @nn.compact
    def __call__(
        self, x_BTD: Float[Array, "B T D"], context: Context, caches: Caches | None = None
    ) -> tuple[Float[Array, "B T D"], Caches | None]:
        """The stream after the period, and each block's cache."""
        after: list[Any] = []
        for i, block in enumerate(self.blocks):
            module = block.build(self.execution, self.placement, name=f"block_{i}")
            x_BTD, cache = module(x_BTD, context, None if caches is None else caches[i])
            after.append(cache)
        return x_BTD, None if caches is None else tuple(after)


def run(
    period: PeriodModule,
    params: Params,
    leaves: Params,
    x_BTD: Float[Array, "B T D"],
    context: Context,
    caches: Caches | None = None,
    *,
    first_layer: int = 0,
) -> tuple[Float[Array, "B T D"], Caches | None]:
    """All repeats in order.

    Each repeat's weights are gathered at the door of its body, and again in the backward pass, so
    that only one period is ever whole.

    Args:
        period: the module.
        params: its parameters, each with a leading ``repeats`` dimension.
        leaves: their leaves, without that dimension.
        x_BTD: the stream that enters.
        context: what all blocks share.
        caches: each block's cache, with a leading ``repeats`` dimension.
        first_layer: number of the first period within the model; keys differ by it.
    """
    repeats = len(jax.tree.leaves(params)[0])
    gather = _gather(period)

    def body(x: Array, xs: tuple[Params, Caches | None, Array]) -> tuple[Array, Caches | None]:
        shards, cache, index = xs
        whole = checkpoint_name(gather(shards, leaves), GATHERED)
        here = context.at_layer(first_layer + index)
        return applied(period, whole, x, here, cache)

    choice = period.execution.scan
    looped = choice == "scan" or (choice == "auto" and repeats >= SCAN_FROM)
    xs = (params, caches, jnp.arange(repeats))
    step = _recomputed(body, period, looped)
    return lax.scan(step, x_BTD, xs, unroll=1 if looped else repeats)


def _gather(period: PeriodModule) -> Callable[[Params, Params], Params]:
    """Makes a period's weights whole, but for those that its MLPs gather piece by piece."""
    whole = period.placement.gather
    if period.execution.mlp_pieces == 1:
        return whole

    def most(params: Params, leaves: Params) -> Params:
        def one(x: Array, leaf: Leaf) -> Array:
            return x if "mlp" in leaf.axes else whole({"it": x}, {"it": leaf})["it"]

        return jax.tree.map(one, params, leaves)

    return most


def _recomputed(
    body: Callable[..., Any],
    period: PeriodModule,
    looped: bool,  # noqa: FBT001
) -> Callable[..., Any]:
    """The body with what its backward pass recomputes; gathered weights always are."""
    e, policies = period.execution, jax.checkpoint_policies
    if e.remat == "nothing":
        if period.placement.alone:
            return body
        policy = policies.save_anything_except_these_names(GATHERED)
    elif e.offload:
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[NAMES[part] for part in e.kept],
            names_which_can_be_offloaded=[NAMES[part] for part in e.offload],
            offload_src="device",
            offload_dst=HOST_MEMORY,
        )
    else:
        policy = policies.save_only_these_names(*(NAMES[part] for part in e.kept))
    # A loop keeps the two passes apart by itself; without one XLA would merge them again.
    return jax.checkpoint(body, policy=policy, prevent_cse=not looped)
