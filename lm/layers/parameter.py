"""Declaring parameters: a shape with its ``Leaf``; values are drawn elsewhere, from the leaf.

Modules never draw random numbers.  ``lm.models.initialise`` reads the leaves of the whole model
and draws every parameter by name, so that values do not depend on the order of declaration.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from lm.batch import Leaf, Params


class Described(struct.PyTreeNode, nn.meta.AxisMetadata[Any]):
    """A parameter together with what is known of it."""

    value: Any
    leaf: Leaf = struct.field(pytree_node=False)

    def unbox(self) -> Any:
        """The bare array."""
        return self.value

    def replace_boxed(self, val: Any) -> "Described":
        """The same description of another value."""
        return Described(val, self.leaf)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Described":
        """Nothing: stacks add their own dimension."""
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Described":
        """Nothing: stacks remove their own dimension."""
        return self


def declare(module: nn.Module, name: str, shape: tuple[int, ...], leaf: Leaf) -> Array:
    """The parameter ``name`` of a module; float32 unless it was fed in another dtype."""
    blank: Callable[..., Described] = lambda _: Described(jnp.zeros(shape, jnp.float32), leaf)  # noqa: E731
    return module.param(name, blank)  # pyright: ignore[reportReturnType]  (unboxed by param)


def leaves_of(module: nn.Module, *arguments: Any) -> Params:
    """The leaves of a module's parameters, given what it is applied to; by shapes alone."""
    described = jax.eval_shape(module.init, jax.random.key(0), *arguments)["params"]
    is_described = lambda x: isinstance(x, Described)  # noqa: E731
    return jax.tree.map(lambda d: d.leaf, described, is_leaf=is_described)


def applied(module: nn.Module, params: Params, *arguments: Any) -> Any:
    """What a module makes of its arguments with these parameters."""
    return module.apply({"params": params}, *arguments)
