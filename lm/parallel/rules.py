"""Tables from logical axes to mesh axes: the one place that knows both vocabularies.

Norms and biases of the stream are replicated: gathering them costs a latency in every block.  A
token table is split by width over the token axes (it is whole when it is read) and by vocabulary
over ``tensor`` alone, so that any vocabulary fits any number of devices.
"""

Rules = dict[str, tuple[str, ...]]
"""Logical axis -> the mesh axes that split it, outermost first; () leaves it whole."""

FSDP_TENSOR: Rules = {
    "batch": ("slices", "data", "fsdp", "expert"),
    "position": ("context",),
    "sequence": ("context", "tensor"),
    "stream": (),
    "layers": (),
    "embed": ("fsdp", "context", "expert"),
    "vocab": ("tensor",),
    "table": ("fsdp", "context", "expert"),
    "length": (),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head": (),
    "mlp": ("tensor",),
    "norm": (),
}
"""``position`` is a token's place within a block's products, ``sequence`` between them: there
``tensor`` splits the positions, so that it moves half as much and keeps a share of the stream."""

FSDP: Rules = {
    **FSDP_TENSOR,
    "sequence": ("context",),
    "vocab": (),
    "heads": (),
    "kv_heads": (),
    "mlp": (),
}
"""Without tensor parallelism; its mesh must have tensor=1."""
