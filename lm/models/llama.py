"""Llama (Touvron 2023, arXiv:2302.13971, arXiv:2307.09288; Grattafiori 2024, arXiv:2407.21783)."""

from lm.layers.attention import Attention
from lm.layers.block import Block
from lm.layers.mlp import GatedMlp
from lm.layers.norm import RmsNorm
from lm.layers.position import LlamaScaling, Rope
from lm.layers.stack import Stack
from lm.models.decoder import Decoder, Tied, Untied


def llama(
    vocab_size: int,
    *,
    width: int,
    blocks: int,
    num_heads: int,
    mlp: int,
    num_kv_heads: int | None = None,
    rope: Rope | None = None,
    tied: bool = False,
) -> Decoder:
    """A Llama of any size: RMSNorm, rotary positions, gated MLP with SiLU, no biases."""
    norm = RmsNorm(epsilon=1e-5)
    attention = Attention(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads or num_heads,
        head_width=width // num_heads,
        position=rope or Rope(theta=10_000.0),
    )
    block = Block(mixer=attention, mlp=GatedMlp(hidden=mlp), pre_norm=norm)
    return Decoder(
        vocab_size=vocab_size,
        width=width,
        stacks=(Stack(blocks=(block,), repeats=blocks),),
        norm=norm,
        unembedding=Tied() if tied else Untied(),
    )


def llama_tiny(vocab_size: int = 512) -> Decoder:
    """Two blocks of width 64, for tests."""
    return llama(vocab_size, width=64, blocks=2, num_heads=4, num_kv_heads=2, mlp=128)


def llama2_7b(vocab_size: int = 32_000) -> Decoder:
    """Llama 2, 7B."""
    return llama(vocab_size, width=4096, blocks=32, num_heads=32, mlp=11_008)


def llama2_13b(vocab_size: int = 32_000) -> Decoder:
    """Llama 2, 13B."""
    return llama(vocab_size, width=5120, blocks=40, num_heads=40, mlp=13_824)


def llama2_70b(vocab_size: int = 32_000) -> Decoder:
    """Llama 2, 70B, with grouped-query attention."""
    return llama(vocab_size, width=8192, blocks=80, num_heads=64, num_kv_heads=8, mlp=28_672)


def llama3_8b(vocab_size: int = 128_256) -> Decoder:
    """Llama 3, 8B."""
    return llama(
        vocab_size,
        width=4096,
        blocks=32,
        num_heads=32,
        num_kv_heads=8,
        mlp=14_336,
        rope=Rope(theta=500_000.0),
    )


def llama3_70b(vocab_size: int = 128_256) -> Decoder:
    """Llama 3, 70B."""
    return llama(
        vocab_size,
        width=8192,
        blocks=80,
        num_heads=64,
        num_kv_heads=8,
        mlp=28_672,
        rope=Rope(theta=500_000.0),
    )


def llama3_1b(vocab_size: int = 128_256) -> Decoder:
    """Llama 3.2, 1B: tied tables, rotary frequencies stretched 32 times."""
    return llama(
        vocab_size,
        width=2048,
        blocks=16,
        num_heads=32,
        num_kv_heads=8,
        mlp=8192,
        rope=Rope(theta=500_000.0, scaling=LlamaScaling(factor=32.0)),
        tied=True,
    )


def llama3_3b(vocab_size: int = 128_256) -> Decoder:
    """Llama 3.2, 3B: tied tables, rotary frequencies stretched 32 times."""
    return llama(
        vocab_size,
        width=3072,
        blocks=28,
        num_heads=24,
        num_kv_heads=8,
        mlp=8192,
        rope=Rope(theta=500_000.0, scaling=LlamaScaling(factor=32.0)),
        tied=True,
    )
