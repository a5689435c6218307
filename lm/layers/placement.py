"""Where arrays live, as far as a layer may know: three functions, identities on one device.

``lm.parallel`` supplies the real ones; layers and models call them and know no mesh.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array

from lm.batch import Params


class Placement(NamedTuple):
    """How parameters are made whole and activations laid out."""

    gather: Callable[[Params, Params], Params] = lambda params, leaves: params
    """(params, their ``Leaf`` tree) -> the params whole over every axis that splits tokens."""
    constrain: Callable[[Array, tuple[str, ...]], Array] = lambda x, axes: x
    """(activation, logical axis names) -> the same, laid out as the rule table says."""
    region: Callable[..., Any] = lambda function, *specs: function
    """Run a function once per shard of the token axes; see ``lm.parallel.explicit``."""
