"""Llama as transformers' ``LlamaForCausalLM`` keeps it: weights [out, in], heads folded."""

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
from lm.layers.mlp import GatedMlp
from lm.layers.norm import RmsNorm
from lm.layers.position import LlamaScaling, Rope
from lm.layers.stack import Stack
from lm.models.decoder import Decoder, Tied, Untied

INWARD = "(n h) d -> d n h"

RULES = (
    Rule("embedding.table", "model.embed_tokens.weight"),
    Rule("blocks.{i}.mixer_norm.scale", "model.layers.{i}.input_layernorm.weight"),
    Rule("blocks.{i}.mixer.query.w", "model.layers.{i}.self_attn.q_proj.weight", INWARD),
    Rule("blocks.{i}.mixer.query.b", "model.layers.{i}.self_attn.q_proj.bias", "(n h) -> n h"),
    Rule("blocks.{i}.mixer.key.w", "model.layers.{i}.self_attn.k_proj.weight", INWARD),
    Rule("blocks.{i}.mixer.key.b", "model.layers.{i}.self_attn.k_proj.bias", "(n h) -> n h"),
    Rule("blocks.{i}.mixer.value.w", "model.layers.{i}.self_attn.v_proj.weight", INWARD),
    Rule("blocks.{i}.mixer.value.b", "model.layers.{i}.self_attn.v_proj.bias", "(n h) -> n h"),
    Rule("blocks.{i}.mixer.out.w", "model.layers.{i}.self_attn.o_proj.weight", "d (n h) -> n h d"),
    Rule("blocks.{i}.mixer.out.b", "model.layers.{i}.self_attn.o_proj.bias"),
    Rule("blocks.{i}.mlp_norm.scale", "model.layers.{i}.post_attention_layernorm.weight"),
    Rule("blocks.{i}.mlp.gate.w", "model.layers.{i}.mlp.gate_proj.weight", "f d -> d f"),
    Rule("blocks.{i}.mlp.gate.b", "model.layers.{i}.mlp.gate_proj.bias"),
    Rule("blocks.{i}.mlp.up.w", "model.layers.{i}.mlp.up_proj.weight", "f d -> d f"),
    Rule("blocks.{i}.mlp.up.b", "model.layers.{i}.mlp.up_proj.bias"),
    Rule("blocks.{i}.mlp.down.w", "model.layers.{i}.mlp.down_proj.weight", "d f -> f d"),
    Rule("blocks.{i}.mlp.down.b", "model.layers.{i}.mlp.down_proj.bias"),
    Rule("norm.scale", "model.norm.weight"),
    Rule("unembedding.w", "lm_head.weight", "v d -> d v"),
)

ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
SCALING = {
    "factor": "factor",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "original_length": "original_max_position_embeddings",
}
"""Fields of ``LlamaScaling`` by transformers' names."""


DEFAULTS = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
"""What transformers takes for a field that is not there."""


def refusals(decoder: Decoder) -> list[str]:
    """What Llama cannot express of a decoder."""
    mixer, mlp = decoder.blocks[0].mixer, decoder.blocks[0].mlp
    reasons = [*common_refusals(decoder), *norm_refusals(decoder, RmsNorm)]
    if decoder.position is not None:
        reasons.append(f"position {decoder.position} beside the embedding")
    if mixer.position is None:
        reasons.append("position None in attention instead of Rope")
    if not isinstance(mlp, GatedMlp):
        reasons.append("Mlp instead of GatedMlp")
    return reasons


def complete(decoder: Decoder) -> Decoder:
    """The same decoder with biases on all four products of attention, if any has one."""

    def biased(block: Block) -> Block:
        some = block.mixer.qkv_bias or block.mixer.out_bias
        return replace(block, mixer=replace(block.mixer, qkv_bias=some, out_bias=some))

    stacks = tuple(replace(s, blocks=tuple(biased(b) for b in s.blocks)) for s in decoder.stacks)
    return replace(decoder, stacks=stacks)


def to_config(decoder: Decoder, length: int) -> dict[str, Any]:
    """The fields of ``LlamaConfig``.

    Rotary positions are written as transformers 4 reads them (``rope_theta``, ``rope_scaling``)
    and as 5 does (``rope_parameters``).
    """
    block = decoder.blocks[0]
    mixer, rope = block.mixer, block.mixer.position or Rope()
    scaling = None
    if rope.scaling is not None:
        named = {theirs: getattr(rope.scaling, ours) for ours, theirs in SCALING.items()}
        scaling = {"rope_type": "llama3", **named}
    deviation = {} if decoder.init_std is None else {"initializer_range": decoder.init_std}
    return {
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.width,
        "intermediate_size": block.mlp.hidden,
        "num_hidden_layers": len(decoder.blocks),
        "num_attention_heads": mixer.num_heads,
        "num_key_value_heads": mixer.num_kv_heads,
        "head_dim": mixer.head_width,
        "hidden_act": ACTIVATIONS[block.mlp.activation],
        "max_position_embeddings": length,
        "rms_norm_eps": block.pre_norm.epsilon if block.pre_norm else 1e-6,
        "attention_bias": mixer.qkv_bias or mixer.out_bias,
        "attention_dropout": 0.0,
        "mlp_bias": block.mlp.bias,
        "tie_word_embeddings": isinstance(decoder.unembedding, Tied),
        "rope_theta": rope.theta,
        "rope_scaling": scaling,
        "rope_parameters": {**(scaling or {"rope_type": "default"}), "rope_theta": rope.theta},
        **deviation,
    }


def from_config(config: Mapping[str, Any]) -> Decoder:
    """The decoder of a ``LlamaConfig``, as transformers 4 or 5 writes it.

    Raises:
        ConversionError: fields that our parts cannot express, collected.
    """
    config = {**DEFAULTS, **config}
    strange = strange_fields(config, [*DEFAULTS, *ROPE], {})
    activation = OURS_BY_THEIRS.get(config["hidden_act"])
    if activation is None:
        strange.append(f"hidden_act {config['hidden_act']!r}")
    rope = _read_rope(config, strange)
    if strange or activation is None:
        raise ConversionError(
            f"config.json: a llama with fields that are not known here: {', '.join(strange)}."
        )
    heads, bias = config["num_attention_heads"], bool(config["attention_bias"])
    norm = RmsNorm(epsilon=float(config["rms_norm_eps"]))
    mixer = Attention(
        num_heads=heads,
        num_kv_heads=config["num_key_value_heads"] or heads,
        head_width=config["head_dim"] or config["hidden_size"] // heads,
        position=rope,
        qkv_bias=bias,
        out_bias=bias,
    )
    mlp = GatedMlp(
        hidden=config["intermediate_size"],
        activation=activation,  # pyright: ignore[reportArgumentType]
        bias=bool(config["mlp_bias"]),
    )
    block = Block(mixer=mixer, mlp=mlp, pre_norm=norm)
    deviation = config.get("initializer_range")
    return Decoder(
        vocab_size=config["vocab_size"],
        width=config["hidden_size"],
        stacks=(Stack(blocks=(block,), repeats=config["num_hidden_layers"]),),
        norm=norm,
        unembedding=Tied() if config["tie_word_embeddings"] else Untied(),
        init_std=None if deviation is None else float(deviation),
    )


def _read_rope(config: Mapping[str, Any], strange: list[str]) -> Rope:
    """Rotary positions; what is not known here goes to ``strange``."""
    # The older field wins where both are there, as in transformers 5.
    fields = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    theta = float(fields.pop("rope_theta", None) or config.get("rope_theta") or 10_000.0)
    older = fields.pop("type", "default")
    kind = fields.pop("rope_type", older)
    if kind == "default":
        scaling = None
    elif kind == "llama3" and all(theirs in fields for theirs in SCALING.values()):
        values = {ours: fields.pop(theirs) for ours, theirs in SCALING.items()}
        length = int(values.pop("original_length"))
        scaling = LlamaScaling(**{k: float(v) for k, v in values.items()}, original_length=length)
    else:
        scaling = None
        strange.append(f"rope_scaling {kind!r}")
    if kind in ("default", "llama3"):
        strange.extend(f"rope_scaling.{k} {v!r}" for k, v in fields.items() if v is not None)
    return Rope(theta=theta, scaling=scaling)


LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    rules=RULES,
    ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    refusals=refusals,
    complete=complete,
    to_config=to_config,
    from_config=from_config,
)
