"""How a model is computed, apart from what it computes; may change at any resume."""

from dataclasses import dataclass
from typing import Literal, get_args

import jax.numpy as jnp

from lm.errors import ConfigError
from lm.ops.attention.attend import Kernel
from lm.ops.attention.pattern import ATTENTION

HOST_MEMORY = "pinned_host"
"""JAX's name of the host's memory that a device reads and writes by itself."""
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

Part = Literal["qkv", "attention", "out", "gate", "up"]
"""What a block makes that its backward pass needs: queries, keys and values; what attention
gives, before its output product and after it; the MLP's inward products."""
Remat = Literal["nothing", "block", "projections", "attention"]
KEPT: dict[Remat, tuple[Part, ...]] = {
    "nothing": get_args(Part),
    "block": (),
    "projections": ("qkv", "gate", "up"),
    "attention": ("attention",),
}
"""What each way to recompute keeps, beside the stream that enters every block."""
QKV, OUT, GATE, UP = "qkv", "out", "gate", "up"
"""Checkpoint names of the parts; that of attention is the kernels' own."""
GATHERED = "gathered"
"""Checkpoint name of weights that were gathered: never kept."""
NAMES: dict[Part, str] = {
    "qkv": QKV,
    "attention": ATTENTION,
    "out": OUT,
    "gate": GATE,
    "up": UP,
}


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Dtype of compute, recomputation and kernels."""

    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and of the weights as they are gathered; master weights are float32."""
    reduce_dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype in which gradients travel between devices; None: the compute dtype."""
    remat: Remat = "nothing"
    """What the backward pass recomputes: nothing; whole blocks; blocks but for their inward
    products; blocks but for what attention gives."""
    save: tuple[Part, ...] = ()
    """Parts of a block kept on the device beside what ``remat`` keeps."""
    offload: tuple[Part, ...] = ()
    """Parts of a block kept in the host's memory until the backward pass; TPU and GPU."""
    offload_optimizer: bool = False
    """Keep the optimizer's state in the host's memory between updates; TPU and GPU."""
    mlp_pieces: int = 1
    """Compute each MLP in so many pieces of its inner width, their weights gathered and their
    gradients scattered one after another: less memory, and inner products computed again."""
    vocab_pieces: int = 1
    """Take the loss in so many pieces of the vocabulary, so that neither the table nor its
    gradient is ever whole: less memory, and the logits computed twice.  1: pieces of tokens."""
    attention_kernel: Kernel = "auto"
    """How attention is computed; ``auto``: the fastest that the platform and the rows allow."""
    scan: Literal["auto", "scan", "unroll"] = "auto"
    """Compile one period of blocks and loop over it, or all of them; auto scans 8 periods or more.
    The parameters are the same in both."""

    def __post_init__(self) -> None:
        """Parts are named once, and where something is recomputed.

        Raises:
            ConfigError: a part that is kept twice.
        """
        if min(self.mlp_pieces, self.vocab_pieces) < 1:
            raise ConfigError(
                f"execution: mlp_pieces={self.mlp_pieces} and vocab_pieces={self.vocab_pieces} "
                "must be 1 or more."
            )
        if self.mlp_pieces > 1 and {"gate", "up"} & {*self.kept, *self.offload}:
            raise ConfigError(
                f"execution: mlp_pieces={self.mlp_pieces} computes the MLP's inward products "
                f"again, and remat={self.remat!r}, save={self.save}, offload={self.offload} keep "
                "them. Use remat='block' or 'attention' without gate and up, or mlp_pieces=1."
            )
        kept = KEPT[self.remat]
        twice = {*self.save} & {*self.offload} | ({*kept} & {*self.save, *self.offload})
        if self.remat == "nothing" and (self.save or self.offload):
            raise ConfigError(
                f"execution: remat='nothing' keeps all of a block, so that save={self.save} and "
                f"offload={self.offload} say nothing. Use remat='block' with them."
            )
        if twice:
            raise ConfigError(
                f"execution: {', '.join(sorted(twice))} would be kept twice (remat="
                f"{self.remat!r} keeps {', '.join(kept) or 'nothing'}, save={self.save}, "
                f"offload={self.offload}). Name each part once."
            )

    @property
    def kept(self) -> tuple[Part, ...]:
        """The parts that stay on the device until the backward pass."""
        return (*KEPT[self.remat], *self.save)
