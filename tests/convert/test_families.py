from dataclasses import replace

import pytest

from lm.convert.families import FAMILIES, family_of
from lm.convert.gpt2 import GPT2
from lm.convert.llama import LLAMA
from lm.errors import ConversionError
from lm.layers.mlp import Mlp
from lm.layers.norm import LayerNorm, RmsNorm
from lm.layers.position import LearnedPositions, Rope
from lm.layers.stack import Stack
from lm.models.gpt2 import gpt2_124m, gpt2_355m, gpt2_774m, gpt2_1558m
from lm.models.llama import (
    llama2_7b,
    llama2_13b,
    llama2_70b,
    llama3_1b,
    llama3_3b,
    llama3_8b,
    llama3_70b,
)


def as_one_stack(decoder):
    (block,) = set(decoder.blocks)
    return replace(decoder, stacks=(Stack(blocks=(block,), repeats=len(decoder.blocks)),))


def test_config_gives_the_decoder_back(decoder):
    family = family_of(decoder)
    full = family.complete(decoder)
    assert family.from_config(family.to_config(full, 128)) == as_one_stack(full)


@pytest.mark.parametrize("make", [gpt2_124m, gpt2_355m, gpt2_774m, gpt2_1558m])
def test_published_gpt2_is_gpt2(make):
    assert family_of(make()) is GPT2
    assert GPT2.from_config(GPT2.to_config(make(), 1)) == make()


@pytest.mark.parametrize(
    "make", [llama2_7b, llama2_13b, llama2_70b, llama3_1b, llama3_3b, llama3_8b, llama3_70b]
)
def test_published_llama_is_llama(make):
    assert family_of(make()) is LLAMA
    assert LLAMA.from_config(LLAMA.to_config(make(), 1)) == make()


ATTENTION = [
    ("qk_norm", RmsNorm()),
    ("window", 16),
    ("soft_cap", 30.0),
    ("scale", 1.0),
]
BLOCK = [("post_norm", RmsNorm()), ("residual", "parallel")]


@pytest.mark.parametrize(("part", "value"), ATTENTION, ids=[part for part, _ in ATTENTION])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_attention_that_the_target_lacks_is_refused_by_name(
    name, part, value, decoders, change_attention
):
    with pytest.raises(ConversionError, match=rf"{name} has no {part} "):
        family_of(change_attention(decoders[name](), **{part: value}))


@pytest.mark.parametrize(("part", "value"), BLOCK, ids=[part for part, _ in BLOCK])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_blocks_that_the_target_lacks_are_refused_by_name(
    name, part, value, decoders, change_block
):
    with pytest.raises(ConversionError, match=rf"{name} has no {part} "):
        family_of(change_block(decoders[name](), **{part: value}))


def test_every_reason_of_every_family_is_told_at_once(decoders, change_attention, change_block):
    odd = change_attention(decoders["llama"](), window=16, qk_norm=RmsNorm())
    odd = replace(change_block(odd, pre_norm=LayerNorm()), logit_soft_cap=30.0)
    with pytest.raises(ConversionError) as caught:
        family_of(odd)
    message = str(caught.value)
    llama = message[message.index("llama has no") :]
    for reason in ("window 16", "qk_norm", "logit_soft_cap 30.0", "LayerNorm"):
        assert reason in llama
    gpt2 = message[: message.index("llama has no")]
    for reason in ("window 16", "RmsNorm", "Rope", "num_kv_heads 2", "GatedMlp", "position None"):
        assert reason in gpt2


def test_what_one_family_lacks_is_refused_by_it(decoders, change_attention, change_block):
    llama, gpt2 = decoders["llama"](), decoders["gpt2"]()
    assert LLAMA.refusals(llama) == GPT2.refusals(gpt2) == []
    for odd, reason in [
        (replace(llama, position=LearnedPositions(length=8)), "position LearnedPositions"),
        (change_attention(llama, position=None), "position None in attention"),
        (change_block(llama, mlp=Mlp(hidden=8)), "Mlp instead of GatedMlp"),
        (replace(llama, norm=None), "norm None"),
        (replace(llama, norm=RmsNorm(epsilon=1e-3)), "different epsilon"),
        (replace(llama, width=33), "width 33"),
    ]:
        (found,) = LLAMA.refusals(odd)
        assert reason in found
    for odd, reason in [
        (replace(gpt2, position=None), "position None"),
        (change_attention(gpt2, position=Rope()), "in attention"),
        (change_attention(gpt2, head_width=16), "head_width 16"),
        (change_block(gpt2, mlp=llama.blocks[0].mlp), "GatedMlp"),
        (replace(gpt2, norm=LayerNorm(epsilon=1e-3)), "different epsilon"),
    ]:
        (found,) = GPT2.refusals(odd)
        assert reason in found


def test_different_blocks_are_refused_but_different_dropout_is_not(decoders, change_attention):
    llama = decoders["llama"]()
    wide = change_attention(llama, head_width=16)
    with pytest.raises(ConversionError, match="2 different blocks"):
        family_of(replace(llama, stacks=(*llama.stacks, *wide.stacks)))
    (block,) = llama.stacks[0].blocks
    dropped = Stack(blocks=(replace(block, dropout=0.1),), repeats=1)
    assert family_of(replace(llama, stacks=(*llama.stacks, dropped))) is LLAMA


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        (GPT2, {"scale_attn_by_inverse_layer_idx": True, "activation_function": "mish"}),
        (GPT2, {"scale_attn_weights": False, "quantization_config": {"bits": 4}}),
        (LLAMA, {"sliding_window": 4096, "hidden_act": "mish"}),
        (LLAMA, {"rope_scaling": {"type": "yarn", "factor": 2.0}, "auto_map": {"A": "b"}}),
    ],
)
def test_fields_that_we_cannot_honour_are_all_named(family, fields):
    with pytest.raises(ConversionError) as caught:
        family.from_config(fields)
    for name in fields:
        assert name in str(caught.value)


def test_rotary_positions_of_transformers_4_and_5_read_alike(decoders):
    decoder = decoders["llama stretched"]()
    config = LLAMA.to_config(decoder, 128)
    four = {k: v for k, v in config.items() if k != "rope_parameters"}
    five = {k: v for k, v in config.items() if k not in ("rope_theta", "rope_scaling")}
    assert LLAMA.from_config(four) == LLAMA.from_config(five) == decoder


def test_family_names_differ():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
