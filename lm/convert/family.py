"""What a Hugging Face architecture is to us, and what none of those known here can express."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from lm.convert.weights import Rule
from lm.layers.block import Block
from lm.layers.norm import Norm
from lm.models.decoder import Decoder


class Family(NamedTuple):
    """One architecture: its config, its names, its limits."""

    name: str
    """``model_type`` in config.json."""
    architecture: str
    """The class in transformers."""
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...]
    """Patterns of tensors that old checkpoints carry but that hold no weights."""
    refusals: Callable[[Decoder], list[str]]
    """The parts of a decoder that it cannot express, each by name with the value."""
    complete: Callable[[Decoder], Decoder]
    """The same decoder with every bias that the architecture always has; a zero bias is none."""
    to_config: Callable[[Decoder, int], dict[str, Any]]
    """(decoder, training length) -> the architecture's own part of config.json."""
    from_config: Callable[[Mapping[str, Any]], Decoder]
    """The inverse; refuses what our parts cannot express."""


ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "silu": "silu",
    "relu": "relu",
    "relu_squared": "relu2",
}
"""Ours by transformers' name."""
OURS_BY_THEIRS: Mapping[str, str] = {
    **{theirs: ours for ours, theirs in ACTIVATIONS.items()},
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "swish": "silu",
}

FREE = frozenset(
    {
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attn_pdrop",
        "bos_token_id",
        "chunk_size_feed_forward",
        "decoder_start_token_id",
        "dtype",
        "eos_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "id2label",
        "initializer_range",
        "is_llama_config",
        "label2id",
        "max_position_embeddings",
        "model_type",
        "n_ctx",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "sep_token_id",
        "task_specific_params",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unk_token_id",
        "use_cache",
    }
)
"""Fields that do not change the forward pass: names, ids, dtypes, training."""


def distinct_blocks(decoder: Decoder) -> list[Block]:
    """The blocks that differ in more than dropout, in order."""
    return list(dict.fromkeys(replace(block, dropout=0.0) for block in decoder.blocks))


def norms(decoder: Decoder) -> list[Norm | None]:
    """Every norm on the stream that the common architectures have."""
    return [*(block.pre_norm for block in distinct_blocks(decoder)), decoder.norm]


def common_refusals(decoder: Decoder) -> Iterator[str]:
    """The parts that neither GPT-2 nor Llama has."""
    blocks = distinct_blocks(decoder)
    if len(blocks) > 1:
        yield f"stacks of {len(blocks)} different blocks"
    for block in blocks:
        yield from _block_refusals(block)
    if decoder.logit_soft_cap is not None:
        yield f"logit_soft_cap {decoder.logit_soft_cap}"
    if decoder.width % blocks[0].mixer.num_heads:
        yield f"width {decoder.width} that is no multiple of num_heads {blocks[0].mixer.num_heads}"


def norm_refusals(decoder: Decoder, kind: type) -> Iterator[str]:
    """Norms of another kind than the architecture's one, or with epsilons that differ."""
    found = norms(decoder)
    for norm in dict.fromkeys(found):
        if not isinstance(norm, kind):
            yield f"norm {norm} instead of {kind.__name__}"
    epsilons = sorted({norm.epsilon for norm in found if norm is not None})
    if len(epsilons) > 1:
        yield f"norms of different epsilon {epsilons}"


def strange_fields(
    config: Mapping[str, Any], read: Sequence[str], fixed: Mapping[str, Any]
) -> list[str]:
    """Fields of a config.json that we cannot honour: unknown ones, or other values than ours.

    An empty field (None, False, 0) asks for nothing.
    """
    strange = [
        f"{name} {config[name]!r} (only {value!r})"
        for name, value in fixed.items()
        if config.get(name, value) != value
    ]
    known = {*read, *fixed, *FREE}
    strange += [
        f"{name} {value!r}"
        for name, value in config.items()
        if name not in known and not name.startswith("summary_") and value
    ]
    return strange


def _block_refusals(block: Block) -> Iterator[str]:
    mixer = block.mixer
    if mixer.qk_norm is not None:
        yield f"qk_norm {mixer.qk_norm}"
    if mixer.window is not None:
        yield f"window {mixer.window}"
    if mixer.soft_cap is not None:
        yield f"soft_cap {mixer.soft_cap}"
    if mixer.scale is not None and mixer.scale != mixer.head_width**-0.5:
        yield f"scale {mixer.scale}"
    if block.post_norm is not None:
        yield f"post_norm {block.post_norm}"
    if block.residual != "sequential":
        yield f"residual {block.residual!r}"
