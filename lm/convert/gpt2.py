"""GPT-2 as transformers' ``GPT2LMHeadModel`` keeps it: weights [in, out], q, k and v in one."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lm.convert.family import (
    ACTIVATIONS,
    OURS_BY_THEIRS,
    Family,
    common_refusals,
    norm_refusals,
    strange_fields,
)
from lm.convert.weights import Rule
from lm.errors import ConversionError
from lm.layers.attention import Attention
from lm.layers.block import Block
from lm.layers.mlp import Mlp
from lm.layers.norm import LayerNorm, Norm
from lm.layers.position import LearnedPositions
from lm.layers.stack import Stack
from lm.models.decoder import Decoder, Tied, Untied

INWARD = tuple(f"blocks.{{i}}.mixer.{name}" for name in ("query", "key", "value"))

RULES = (
    Rule("embedding.table", "transformer.wte.weight"),
    Rule("position.table", "transformer.wpe.weight"),
    Rule("blocks.{i}.mixer_norm.scale", "transformer.h.{i}.ln_1.weight"),
    Rule("blocks.{i}.mixer_norm.bias", "transformer.h.{i}.ln_1.bias"),
    Rule(
        tuple(f"{name}.w" for name in INWARD),
        "transformer.h.{i}.attn.c_attn.weight",
        "d (n h) -> d n h",
    ),
    Rule(
        tuple(f"{name}.b" for name in INWARD), "transformer.h.{i}.attn.c_attn.bias", "(n h) -> n h"
    ),
    Rule("blocks.{i}.mixer.out.w", "transformer.h.{i}.attn.c_proj.weight", "(n h) d -> n h d"),
    Rule("blocks.{i}.mixer.out.b", "transformer.h.{i}.attn.c_proj.bias"),
    Rule("blocks.{i}.mlp_norm.scale", "transformer.h.{i}.ln_2.weight"),
    Rule("blocks.{i}.mlp_norm.bias", "transformer.h.{i}.ln_2.bias"),
    Rule("blocks.{i}.mlp.up.w", "transformer.h.{i}.mlp.c_fc.weight"),
    Rule("blocks.{i}.mlp.up.b", "transformer.h.{i}.mlp.c_fc.bias"),
    Rule("blocks.{i}.mlp.down.w", "transformer.h.{i}.mlp.c_proj.weight"),
    Rule("blocks.{i}.mlp.down.b", "transformer.h.{i}.mlp.c_proj.bias"),
    Rule("norm.scale", "transformer.ln_f.weight"),
    Rule("norm.bias", "transformer.ln_f.bias"),
    Rule("unembedding.w", "lm_head.weight", "v d -> d v"),
)

FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}


DEFAULTS = {
    "vocab_size": 50_257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
}
"""What transformers takes for a field that is not there."""


def refusals(decoder: Decoder) -> list[str]:
    """What GPT-2 cannot express of a decoder."""
    mixer, mlp = decoder.blocks[0].mixer, decoder.blocks[0].mlp
    reasons = [*common_refusals(decoder), *norm_refusals(decoder, LayerNorm)]
    if decoder.position is None:
        reasons.append("position None instead of LearnedPositions")
    if mixer.position is not None:
        reasons.append(f"position {mixer.position} in attention")
    if mixer.num_kv_heads != mixer.num_heads:
        reasons.append(f"num_kv_heads {mixer.num_kv_heads} of {mixer.num_heads} heads")
    if mixer.num_heads * mixer.head_width != decoder.width:
        reasons.append(f"head_width {mixer.head_width} that is not width / num_heads")
    if not isinstance(mlp, Mlp):
        reasons.append("GatedMlp instead of Mlp")
    return reasons


def complete(decoder: Decoder) -> Decoder:
    """The same decoder with the biases that GPT-2 always has."""

    def with_bias(norm: Norm | None) -> Norm | None:
        return replace(norm, bias=True) if isinstance(norm, LayerNorm) else norm

    def biased(block: Block) -> Block:
        return replace(
            block,
            mixer=replace(block.mixer, qkv_bias=True, out_bias=True),
            mlp=replace(block.mlp, bias=True),
            pre_norm=with_bias(block.pre_norm),
        )

    stacks = tuple(replace(s, blocks=tuple(biased(b) for b in s.blocks)) for s in decoder.stacks)
    return replace(decoder, stacks=stacks, norm=with_bias(decoder.norm))


def to_config(decoder: Decoder, length: int) -> dict[str, Any]:
    """The fields of ``GPT2Config``; the position table decides the length."""
    block = decoder.blocks[0]
    activation = block.mlp.activation
    return {
        "vocab_size": decoder.vocab_size,
        "n_positions": decoder.positions or length,
        "n_embd": decoder.width,
        "n_layer": len(decoder.blocks),
        "n_head": block.mixer.num_heads,
        "n_inner": block.mlp.hidden,
        # GPT-2's own name for the tanh form, which other readers of its config expect.
        "activation_function": (
            "gelu_new" if activation == "gelu_tanh" else ACTIVATIONS[activation]
        ),
        "layer_norm_epsilon": block.pre_norm.epsilon if block.pre_norm else 1e-5,
        "resid_pdrop": block.dropout,
        "embd_pdrop": decoder.embedding_dropout,
        "attn_pdrop": 0.0,
        "initializer_range": decoder.init_std or 0.02,
        "tie_word_embeddings": isinstance(decoder.unembedding, Tied),
        **FIXED,
    }


def from_config(config: Mapping[str, Any]) -> Decoder:
    """The decoder of a ``GPT2Config``.

    Raises:
        ConversionError: fields that our parts cannot express, collected.
    """
    config = {**DEFAULTS, **config}
    strange = strange_fields(config, list(DEFAULTS), FIXED)
    activation = OURS_BY_THEIRS.get(config["activation_function"])
    if activation is None:
        strange.append(f"activation_function {config['activation_function']!r}")
    if strange or activation is None:
        raise ConversionError(
            f"config.json: a gpt2 with fields that are not known here: {', '.join(strange)}."
        )
    width, heads = config["n_embd"], config["n_head"]
    norm = LayerNorm(epsilon=float(config["layer_norm_epsilon"]))
    mixer = Attention(
        num_heads=heads,
        num_kv_heads=heads,
        head_width=width // heads,
        qkv_bias=True,
        out_bias=True,
    )
    mlp = Mlp(hidden=config["n_inner"] or 4 * width, activation=activation, bias=True)  # pyright: ignore[reportArgumentType]
    block = Block(mixer=mixer, mlp=mlp, pre_norm=norm, dropout=float(config["resid_pdrop"]))
    return Decoder(
        vocab_size=config["vocab_size"],
        width=width,
        stacks=(Stack(blocks=(block,), repeats=config["n_layer"]),),
        position=LearnedPositions(length=config["n_positions"]),
        norm=norm,
        unembedding=Tied() if config["tie_word_embeddings"] else Untied(),
        embedding_dropout=float(config["embd_pdrop"]),
        init_std=float(config["initializer_range"]),
    )


GPT2 = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    rules=RULES,
    ignored=(r"transformer\.h\.\d+\.attn\.(masked_)?bias",),
    refusals=refusals,
    complete=complete,
    to_config=to_config,
    from_config=from_config,
)
