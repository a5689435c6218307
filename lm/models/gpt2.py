"""GPT-2 (Radford 2019, "Language Models are Unsupervised Multitask Learners")."""

from lm.layers.attention import Attention
from lm.layers.block import Block
from lm.layers.mlp import Mlp
from lm.layers.norm import LayerNorm
from lm.layers.position import LearnedPositions
from lm.layers.stack import Stack
from lm.models.decoder import Decoder, Tied

PADDED_VOCABULARY = 50_304
"""GPT-2's 50,257 ids, padded to a multiple of 128 so that the table can be sharded."""


def gpt2(
    vocab_size: int,
    *,
    width: int,
    blocks: int,
    num_heads: int,
    length: int = 1024,
    dropout: float = 0.0,
    bias: bool = True,
) -> Decoder:
    """A GPT-2 of any size: LayerNorm, learned positions, GELU (tanh form), tied table."""
    attention = Attention(
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_width=width // num_heads,
        qkv_bias=bias,
        out_bias=bias,
    )
    block = Block(
        mixer=attention,
        mlp=Mlp(hidden=4 * width, activation="gelu_tanh", bias=bias),
        pre_norm=LayerNorm(bias=bias),
        dropout=dropout,
    )
    return Decoder(
        vocab_size=vocab_size,
        width=width,
        stacks=(Stack(blocks=(block,), repeats=blocks),),
        position=LearnedPositions(length=length),
        norm=LayerNorm(bias=bias),
        unembedding=Tied(),
        embedding_dropout=dropout,
        init_std=0.02,
    )


def gpt2_tiny(vocab_size: int = 512, length: int = 128) -> Decoder:
    """Two blocks of width 64, for tests."""
    return gpt2(vocab_size, width=64, blocks=2, num_heads=4, length=length)


def gpt2_124m(vocab_size: int = PADDED_VOCABULARY) -> Decoder:
    """GPT-2 small."""
    return gpt2(vocab_size, width=768, blocks=12, num_heads=12)


def gpt2_355m(vocab_size: int = PADDED_VOCABULARY) -> Decoder:
    """GPT-2 medium."""
    return gpt2(vocab_size, width=1024, blocks=24, num_heads=16)


def gpt2_774m(vocab_size: int = PADDED_VOCABULARY) -> Decoder:
    """GPT-2 large."""
    return gpt2(vocab_size, width=1280, blocks=36, num_heads=20)


def gpt2_1558m(vocab_size: int = PADDED_VOCABULARY) -> Decoder:
    """GPT-2 XL."""
    return gpt2(vocab_size, width=1600, blocks=48, num_heads=25)
