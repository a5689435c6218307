import zlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Batch, Tokens
from lm.convert.weights import shapes_of
from lm.layers.execution import Execution
from lm.layers.position import LlamaScaling, Rope
from lm.layers.stack import Stack
from lm.models.gpt2 import gpt2
from lm.models.llama import llama

LENGTH = 160


def make_random(decoder, seed=0):
    """Every tensor random, norms and biases too; logits of deviation 1 or more."""

    def draw(path, shape):
        name = jax.tree_util.keystr(path)
        rng = np.random.default_rng((zlib.crc32(name.encode()), seed))
        x = rng.standard_normal(shape.shape).astype(np.float32)
        if "scale" in name:
            return 1 + 0.3 * x
        if "'b'" in name or "bias" in name:
            return 0.3 * x
        if "table" in name:
            return 0.4 * x
        return 1.5 * x / np.float32(np.sqrt(decoder.width))

    return jax.tree_util.tree_map_with_path(draw, shapes_of(decoder))


def regrouped(decoder):
    """The same layers as one block, then a period of two twice: absolute numbers must hold."""
    (block,) = decoder.stacks[0].blocks
    stacks = (Stack(blocks=(block,), repeats=1), Stack(blocks=(block, block), repeats=2))
    return replace(decoder, stacks=stacks)


def small_gpt2(**options):
    return gpt2(options.pop("vocab_size", 259), width=32, blocks=2, num_heads=4, **options)


def small_llama(**options):
    rope = options.pop("rope", Rope(theta=1_000.0))
    defaults = {"vocab_size": 259, "num_kv_heads": 2, "tied": False, "mlp": 48}
    return llama(width=32, blocks=2, num_heads=4, rope=rope, **(defaults | options))


def with_attention(decoder, **changes):
    (stack,) = decoder.stacks
    (block,) = stack.blocks
    block = replace(block, mixer=replace(block.mixer, **changes))
    return replace(decoder, stacks=(replace(stack, blocks=(block,)),))


def with_block(decoder, **changes):
    (stack,) = decoder.stacks
    return replace(decoder, stacks=(replace(stack, blocks=(replace(stack.blocks[0], **changes),)),))


STRETCHED = Rope(theta=1_000.0, scaling=LlamaScaling(factor=4.0, original_length=48))
"""Knees at wavelengths of 12 and 48 positions: some of a head's four frequencies are stretched,
one is interpolated, one is kept."""

DECODERS = {
    "gpt2": lambda: small_gpt2(length=LENGTH),
    "gpt2 padded": lambda: small_gpt2(length=LENGTH, vocab_size=320),
    "gpt2 without biases": lambda: small_gpt2(length=LENGTH, bias=False),
    "gpt2 in two stacks": lambda: regrouped(small_gpt2(length=LENGTH)),
    "gpt2 with exact gelu": lambda: with_block(
        small_gpt2(length=LENGTH),
        mlp=replace(small_gpt2().blocks[0].mlp, activation="gelu", hidden=80),
    ),
    "llama": small_llama,
    "llama tied": lambda: small_llama(tied=True),
    "llama with all heads": lambda: small_llama(num_kv_heads=4),
    "llama stretched": lambda: small_llama(rope=STRETCHED),
    "llama with biases": lambda: with_block(
        with_attention(small_llama(), qkv_bias=True, out_bias=True),
        mlp=replace(small_llama().blocks[0].mlp, bias=True),
    ),
    "llama with query biases": lambda: with_attention(small_llama(), qkv_bias=True),
    "llama with wide heads": lambda: with_attention(small_llama(), head_width=12),
    "llama in two stacks": lambda: regrouped(small_llama()),
}


@pytest.fixture(params=DECODERS)
def decoder(request):
    """Each decoder that can be exported."""
    return DECODERS[request.param]()


@pytest.fixture
def decoders():
    """Functions that make them, by name."""
    return DECODERS


def make_logits(decoder):
    """A compiled function of (params, ids) that gives our logits."""
    model = decoder.build(Execution())

    def logits(params, ids):
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        tokens = Tokens(ids, jnp.ones_like(ids), positions)
        batch = Batch(tokens, ids, jnp.ones(ids.shape), jnp.arange(len(ids)))
        return model.logits(params)(model.apply(params, batch, None).hidden)

    return jax.jit(logits)


@pytest.fixture
def our_logits():
    return make_logits


@pytest.fixture
def random_params():
    return make_random


@pytest.fixture
def change_attention():
    return with_attention


@pytest.fixture
def change_block():
    return with_block
