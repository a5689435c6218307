"""Tables from logical axes to mesh axes: the one place that knows both vocabularies.

Norms and biases of the stream are replicated: gathering them costs a latency in every block.  A
token table is split by vocabulary only; split by width, XLA replicates the lookup.
"""

Rules = dict[str, tuple[str, ...]]
"""Logical axis -> the mesh axes that split it, outermost first; () leaves it whole."""

FSDP_TENSOR: Rules = {
    "batch": ("slices", "data", "fsdp"),
    "position": (),
    "stream": (),
    "layers": (),
    "embed": ("fsdp",),
    "vocab": ("fsdp", "tensor"),
    "table": (),
    "length": (),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head": (),
    "mlp": ("tensor",),
    "norm": (),
}

FSDP: Rules = {
    **FSDP_TENSOR,
    "vocab": ("fsdp",),
    "heads": (),
    "kv_heads": (),
    "mlp": (),
}
"""Without tensor parallelism; its mesh must have tensor=1."""
