"""Decoder-only transformers (Radford 2018; Vaswani 2017, arXiv:1706.03762)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm.batch import Batch, Leaf, LogitsFn, Output, Params, Pieced
from lm.errors import ConfigError
from lm.layers import cache as memory
from lm.layers import pieces
from lm.layers import stack as stacks
from lm.layers.block import Block
from lm.layers.context import Context, dropout
from lm.layers.embedding import TokenEmbedding, Unembedding
from lm.layers.execution import DTYPES, Execution
from lm.layers.linear import head_product
from lm.layers.norm import Norm, RmsNorm
from lm.layers.parameter import Described, applied
from lm.layers.placement import Placement
from lm.layers.position import LearnedPositions, Rope
from lm.layers.stack import Stack
from lm.models.initialise import initialise
from lm.models.model import Caches, Decoding, Model
from lm.ops.attention.pattern import Where
from lm.ops.rope import Angles, angles


@dataclass(frozen=True, kw_only=True)
class Tied:
    """The output head is the token table (Press 2017, arXiv:1608.05859)."""


@dataclass(frozen=True, kw_only=True)
class Untied:
    """The output head has weights of its own."""


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A causal language model: token table, stacks of blocks, norm, output head."""

    vocab_size: int
    width: int
    """Size D of the residual stream."""
    stacks: tuple[Stack, ...]
    position: LearnedPositions | None = None
    """Positions added to the embedding; rotary ones stand in the blocks' attention."""
    norm: Norm | None = field(default_factory=RmsNorm)
    """Norm before the output head."""
    unembedding: Tied | Untied = field(default_factory=Tied)
    logit_soft_cap: float | None = None
    """Logits become cap * tanh(logits / cap) (Gemma 2, arXiv:2408.00118)."""
    embedding_dropout: float = 0.0
    init_std: float | None = None
    """Deviation of the initial matrices and tables; None: by fan-in."""

    def __post_init__(self) -> None:
        """Sizes are positive.

        Raises:
            ConfigError: a size that cannot be.
        """
        if self.vocab_size < 1 or self.width < 1 or not self.stacks:
            raise ConfigError(
                f"decoder: vocab_size {self.vocab_size}, width {self.width} and "
                f"{len(self.stacks)} stacks make no model; all must be positive."
            )

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Every block in order, by absolute layer number."""
        return tuple(block for s in self.stacks for block in s.blocks * s.repeats)

    @property
    def positions(self) -> int | None:
        """How many positions the model has; None: no end."""
        return None if self.position is None else self.position.length

    def build(self, execution: Execution, placement: Placement | None = None) -> Model:
        """The functions of the model."""
        live = _Live(self, execution, placement or Placement())
        decoding = Decoding(live.empty, live.prefill, live.extend, live.evict)
        return Model(live.init, live.apply, live.logits, live.leaves, decoding)


def windowed(decoder: Decoder, length: int) -> Decoder:
    """The same decoder that never looks more than ``length`` positions back."""

    def near(block: Block) -> Block:
        window = min(length, block.mixer.window or length)
        return replace(block, mixer=replace(block.mixer, window=window))

    cut = tuple(replace(s, blocks=tuple(near(b) for b in s.blocks)) for s in decoder.stacks)
    return replace(decoder, stacks=cut)


class _Live:
    """The decoder's functions; holds configs and descriptions, never an array."""

    def __init__(self, config: Decoder, execution: Execution, placement: Placement) -> None:
        self.config, self.placement = config, placement
        self.dtype = DTYPES[execution.compute_dtype]
        self.vocab_pieces = _divides(execution.vocab_pieces, config.vocab_size)
        self.periods = [s.period(execution, placement) for s in config.stacks]
        self.embedding = TokenEmbedding(config.vocab_size, config.width)
        self.head = Unembedding(config.vocab_size, config.width)
        described = {**self._outer(), **self._stacked()}
        is_described = lambda x: isinstance(x, Described)  # noqa: E731
        self.shapes = jax.tree.map(lambda d: d.value, described, is_leaf=is_described)
        self.leaves = jax.tree.map(lambda d: d.leaf, described, is_leaf=is_described)
        self.body_leaves = [
            jax.tree.map(_without_layers, self.leaves[f"stack_{i}"])
            for i in range(len(config.stacks))
        ]

    def init(self, key: Array) -> Params:
        c = self.config
        return initialise(key, self.shapes, self.leaves, std=c.init_std, depth=len(c.blocks))

    def apply(self, params: Params, batch: Batch, key: Array | None = None) -> Output:
        tokens = batch.inputs
        where = Where(tokens.segments, tokens.positions)
        there = Where(*(self.placement.whole_rows(x) for x in where))
        context = self._context(where, there, batch.rows, key)
        hidden, _ = self._forward(params, tokens.ids, context, None)
        return Output(hidden, {})

    def logits(self, params: Params) -> LogitsFn:
        name = "embedding" if isinstance(self.config.unembedding, Tied) else "unembedding"
        leaves, count = self.leaves[name], self.vocab_pieces

        def part(stored: Params, hidden: Array) -> Array:
            return self._scores(self.placement.gather(stored, leaves), hidden)

        whole = self._whole(params, name)
        if count == 1:
            return lambda hidden: self._scores(whole, hidden)
        size = self.config.vocab_size // count
        return Pieced(
            lambda hidden: self._scores(whole, hidden),
            pieces.cut(params[name], leaves, "vocab", count),
            part,
            lambda index: pieces.ids(index, size, count),
        )

    def _scores(self, head: Params, hidden: Float[Array, "*tokens D"]) -> Float[Array, "*tokens V"]:
        w_VD = (head["table"] if "table" in head else head["w"].T).astype(self.dtype)
        scores = head_product(hidden, w_VD)
        cap = self.config.logit_soft_cap
        return scores if cap is None else cap * jnp.tanh(scores / cap)

    def empty(self, slots: int, length: int) -> Caches:
        def one(block: Block) -> memory.KvCache:
            m = block.mixer
            return memory.empty(slots, length, m.num_kv_heads, m.head_width, jnp.dtype(self.dtype))

        return tuple(
            tuple(
                jax.tree.map(lambda x, n=s.repeats: jnp.broadcast_to(x, (n, *x.shape)), one(block))
                for block in s.blocks
            )
            for s in self.config.stacks
        )

    def prefill(
        self,
        params: Params,
        caches: Caches,
        slots: Int[Array, " B"],
        ids: Int[Array, "B T"],
        lengths: Int[Array, " B"],
    ) -> tuple[Caches, Float[Array, "B D"]]:
        B, T = ids.shape
        places = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
        own = jax.tree.map(lambda x: x[:, slots], caches)
        hidden, own = self._forward(params, ids, self._decoding_context(places), own)
        caches = jax.tree.map(lambda x, y: x.at[:, slots].set(y), caches, own)
        last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)
        return caches, last[:, 0]

    def extend(
        self, params: Params, caches: Caches, ids: Int[Array, " S"], lengths: Int[Array, " S"]
    ) -> tuple[Caches, Float[Array, "S D"]]:
        context = self._decoding_context(lengths[:, None])
        hidden, caches = self._forward(params, ids[:, None], context, caches)
        return caches, hidden[:, 0]

    def evict(self, caches: Caches, slots: Int[Array, " B"]) -> Caches:
        return jax.tree.map(lambda x: x.at[:, slots].set(0), caches)

    def _forward(
        self, params: Params, ids: Int[Array, "B T"], context: Context, caches: Caches | None
    ) -> tuple[Float[Array, "B T D"], Caches | None]:
        x = applied(self.embedding, self._whole(params, "embedding"), ids)
        if self.config.position is not None:
            table = self.config.position.build(self.config.width)
            x = x + applied(table, self._whole(params, "position"), context.where.positions)
        x = self.placement.constrain(x.astype(self.dtype), ("batch", "sequence", "stream"))
        x = dropout(x, self.config.embedding_dropout, context, "embedding")
        after, layer = [], 1
        for i, period in enumerate(self.periods):
            x, cache = stacks.run(
                period,
                params[f"stack_{i}"],
                self.body_leaves[i],
                x,
                context,
                None if caches is None else caches[i],
                first_layer=layer,
            )
            after.append(cache)
            layer += self.config.stacks[i].repeats
        if self.config.norm is not None:
            x = applied(self.config.norm.build(), self._whole(params, "norm"), x)
        return x, None if caches is None else tuple(after)

    def _whole(self, params: Params, name: str) -> Params:
        return self.placement.gather(params[name], self.leaves[name])

    def _context(
        self, where: Where, there: Where, rows: Int[Array, " B"], key: Array | None
    ) -> Context:
        return Context(where, there, rows, dict(self._rotations(where)), key)

    def _decoding_context(self, positions: Int[Array, "B T"]) -> Context:
        where = Where(jnp.ones_like(positions), positions)
        return self._context(where, where, jnp.arange(len(positions)), None)

    def _rotations(self, where: Where) -> Iterator[tuple[Rope, Angles]]:
        for block in {b.mixer for s in self.config.stacks for b in s.blocks}:
            if block.position is not None:
                turns = jnp.asarray(block.position.frequencies(block.head_width))
                yield block.position, angles(where.positions, turns)

    def _outer(self) -> dict[str, Any]:
        """Descriptions of what stands outside the stacks."""
        c = self.config
        ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
        stream = jax.ShapeDtypeStruct((1, 2, c.width), jnp.float32)
        parts: dict[str, tuple[Any, Any]] = {"embedding": (self.embedding, ids)}
        if c.position is not None:
            parts["position"] = (c.position.build(c.width), ids)
        if c.norm is not None:
            parts["norm"] = (c.norm.build(), stream)
        if isinstance(c.unembedding, Untied):
            parts["unembedding"] = (self.head, stream)
        return {name: _describe(module, entry) for name, (module, entry) in parts.items()}

    def _stacked(self) -> dict[str, Any]:
        """Descriptions of the stacks, each parameter with its ``layers`` dimension."""
        c, described = self.config, {}
        tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
        stream = jax.ShapeDtypeStruct((1, 2, c.width), jnp.float32)
        for i, stack in enumerate(c.stacks):
            period = stack.period(Execution(), Placement())

            def described_by(x: Array, at: Array, period: Any = period) -> Any:
                where = Where(at, at)
                context = self._context(where, where, jnp.zeros(1, jnp.int32), None)
                return period.init(jax.random.key(0), x, context)["params"]

            one = jax.eval_shape(described_by, stream, tokens)
            described[f"stack_{i}"] = jax.tree.map(
                lambda d, n=stack.repeats: _with_layers(d, n),
                one,
                is_leaf=lambda x: isinstance(x, Described),
            )
        return described


def _divides(pieces: int, vocab_size: int) -> int:
    if vocab_size % pieces:
        choices = [str(n) for n in range(1, 65) if vocab_size % n == 0]
        raise ConfigError(
            f"execution.vocab_pieces: a vocabulary of {vocab_size} cannot be cut into {pieces} "
            f"equal pieces. Choose from: {', '.join(choices)}; or pad vocab_size to "
            f"{-(-vocab_size // pieces) * pieces}."
        )
    return pieces


def _describe(module: Any, entry: jax.ShapeDtypeStruct) -> Mapping[str, Any]:
    return jax.eval_shape(module.init, jax.random.key(0), entry)["params"]


def _with_layers(d: Described, repeats: int) -> Described:
    leaf = replace(d.leaf, axes=("layers", *d.leaf.axes), stacked=True)
    return Described(jax.ShapeDtypeStruct((repeats, *d.value.shape), d.value.dtype), leaf)


def _without_layers(leaf: Leaf) -> Leaf:
    return replace(leaf, axes=leaf.axes[1:], stacked=False)
