"""Where arrays live, as far as a layer may know: a few functions, identities on one device.

``lm.parallel`` supplies the real ones; layers and models call them and know no mesh.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array

from lm.batch import Params
from lm.ops.attention.zigzag import Shard


class Placement(NamedTuple):
    """How parameters are made whole and activations laid out."""

    gather: Callable[[Params, Params], Params] = lambda params, leaves: params
    """(params, their ``Leaf`` tree) -> the params whole over every axis that splits tokens."""
    constrain: Callable[[Array, tuple[str, ...]], Array] = lambda x, axes: x
    """(activation, logical axis names) -> the same, laid out as the rule table says."""
    whole_rows: Callable[[Array], Array] = lambda x: x
    """[B, t, ...] of this device's share of the positions -> [B, T, ...], shard after shard."""
    row_shard: Callable[[], Shard | None] = lambda: None
    """Which share of each row's positions this device has; None: all of them."""
    alone: bool = True
    """Whether there is one device, and all of these do nothing."""
    platform: str = "cpu"
    """What is compiled for: ``cpu``, ``gpu`` or ``tpu``."""
    flat: bool = True
    """Whether the tokens of [B, T] may be flattened: no axis left to the compiler splits T."""
    local: Callable[..., Any] = lambda function, inward, outward: function
    """Run a function once per device; see ``lm.parallel.explicit``."""
