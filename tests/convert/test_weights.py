from dataclasses import replace
from functools import partial

import jax
import ml_dtypes
import numpy as np
import pytest

from lm.convert.families import family_of
from lm.convert.weights import (
    Rule,
    complete,
    compress,
    count_parameters,
    export_shapes,
    export_tree,
    import_tree,
    shapes_of,
)
from lm.errors import ConversionError
from lm.models.decoder import Tied
from lm.models.gpt2 import gpt2_124m
from lm.models.llama import llama3_8b


def tensors_of(decoder, params, rules):
    return {name: partial(np.array, array) for name, array in export_tree(decoder, params, rules)}


def equal(a, b):
    same = jax.tree.map(lambda x, y: x.shape == y.shape and bool((x == y).all()), a, b)
    return all(jax.tree.leaves(same))


def test_import_undoes_export_bit_for_bit(decoder, random_params):
    family = family_of(decoder)
    params = random_params(decoder)
    tensors = tensors_of(decoder, params, family.rules)
    assert equal(import_tree(decoder, tensors, family.rules), params)


def test_streamed_tensors_are_those_announced(decoder, random_params):
    family = family_of(decoder)
    shapes = export_shapes(decoder, family.rules)
    found = [(n, a.shape) for n, a in export_tree(decoder, random_params(decoder), family.rules)]
    assert found == list(shapes.items())
    assert sum(int(np.prod(s)) for s in shapes.values()) == count_parameters(decoder)


def test_arrays_spread_over_devices_export_as_numpy_does(decoders, random_params):
    decoder = decoders["llama in two stacks"]()
    family, params = family_of(decoder), random_params(decoder)
    mesh = jax.sharding.Mesh(jax.devices(), "fsdp")

    def spread(x):
        dimension = max(range(x.ndim), key=lambda d: x.shape[d] % 8 == 0)
        spec = [None] * x.ndim
        spec[dimension] = "fsdp" if x.shape[dimension] % 8 == 0 else None
        return jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec)))

    placed = jax.tree.map(spread, params)
    assert len(placed["stack_1"]["block_0"]["mixer"]["query"]["w"].sharding.device_set) == 8
    ours = dict(export_tree(decoder, params, family.rules))
    theirs = dict(export_tree(decoder, placed, family.rules))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_layer_numbers_are_absolute(decoders, random_params):
    """Layer 4 of one stack and a period of two twice is the second row of the second block."""
    decoder = decoders["llama in two stacks"]()
    params = random_params(decoder)
    tensors = dict(export_tree(decoder, params, family_of(decoder).rules))
    for layer, (stack, block, row) in enumerate(
        [(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 0, 1), (1, 1, 1)]
    ):
        scale = params[f"stack_{stack}"][f"block_{block}"]["mixer_norm"]["scale"][row]
        name = f"model.layers.{layer}.input_layernorm.weight"
        np.testing.assert_array_equal(tensors[name], scale)


@pytest.mark.parametrize("name", ["gpt2", "llama with biases"])
def test_a_dropped_rule_is_an_error_both_ways(decoders, random_params, name):
    decoder = decoders[name]()
    family, params = family_of(decoder), random_params(decoder)
    tensors = tensors_of(decoder, params, family.rules)
    used = [rule for rule in family.rules if rule.theirs.replace("{i}", "0") in tensors]
    assert len(used) >= 15
    for rule in used:
        rest = [other for other in used if other is not rule]
        with pytest.raises(ConversionError, match=r"without a rule and .* not filled"):
            import_tree(decoder, tensors, rest)
        with pytest.raises(ConversionError, match="without a place"):
            export_shapes(decoder, rest)


@pytest.mark.parametrize("name", ["gpt2", "llama with biases"])
def test_two_swapped_rules_are_an_error_or_other_weights(decoders, random_params, name):
    decoder = decoders[name]()
    family, params = family_of(decoder), random_params(decoder)
    tensors = tensors_of(decoder, params, family.rules)
    used = [rule for rule in family.rules if rule.theirs.replace("{i}", "0") in tensors]
    for i, one in enumerate(used):
        for other in used[i + 1 :]:
            swapped = [
                replace(r, theirs=other.theirs)
                if r is one
                else replace(r, theirs=one.theirs)
                if r is other
                else r
                for r in used
            ]
            try:
                assert not equal(import_tree(decoder, tensors, swapped), params)
            except ConversionError:
                continue


def test_everything_that_does_not_fit_is_reported_at_once(decoders, random_params):
    decoder = decoders["llama"]()
    family = family_of(decoder)
    tensors = tensors_of(decoder, random_params(decoder), family.rules)
    for i in range(2):
        tensors[f"model.layers.{i}.self_attn.q_norm.weight"] = partial(np.ones, 8)
    del tensors["lm_head.weight"]
    tensors["model.norm.weight"] = partial(np.ones, 31, np.float32)
    tensors["model.embed_tokens.weight"] = partial(np.full, (259, 32), np.nan, np.float32)
    tensors["model.layers.1.mlp.up_proj.weight"] = partial(np.ones, (48, 32), np.int8)
    with pytest.raises(ConversionError) as caught:
        import_tree(decoder, tensors, family.rules)
    message = str(caught.value)
    assert "2 tensors of the checkpoint without a rule and 1 parameter not filled" in message
    assert "no rule      model.layers.{0..1}.self_attn.q_norm.weight" in message
    assert "not filled   unembedding.w  (shape (32, 259)); the checkpoint ties" in message
    assert "model.norm.weight has shape (31,), the model (32,)" in message
    assert "model.embed_tokens.weight holds values that are not finite" in message
    assert "model.layers.1.mlp.up_proj.weight holds int8" in message


def test_the_hint_on_tied_tables_mends_it(decoders, random_params):
    decoder = decoders["llama"]()
    rules = family_of(decoder).rules
    tensors = tensors_of(decoder, random_params(decoder), rules)
    del tensors["lm_head.weight"]
    import_tree(replace(decoder, unembedding=Tied()), tensors, rules)


def test_ignored_names_need_no_rule(decoders, random_params):
    decoder = decoders["gpt2"]()
    family = family_of(decoder)
    tensors = tensors_of(decoder, random_params(decoder), family.rules)
    tensors["transformer.h.1.attn.bias"] = partial(np.ones, (1, 1, 4, 4))
    with pytest.raises(ConversionError, match=r"transformer\.h\.1\.attn\.bias"):
        import_tree(decoder, tensors, family.rules)
    import_tree(decoder, tensors, family.rules, ignored=family.ignored)


def test_bfloat16_is_read_exactly(decoders, random_params):
    decoder = decoders["llama tied"]()
    family = family_of(decoder)
    coarse = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), random_params(decoder))
    exact = jax.tree.map(lambda x: x.astype(np.float32), coarse)
    tensors = {
        name: partial(np.array, array.astype(ml_dtypes.bfloat16))
        for name, array in export_tree(decoder, exact, family.rules)
    }
    assert equal(import_tree(decoder, tensors, family.rules), exact)


def test_zero_biases_compute_the_same(decoders, random_params, our_logits):
    decoder = decoders["gpt2 without biases"]()
    full = family_of(decoder).complete(decoder)
    params = random_params(decoder)
    filled = complete(params, full)
    assert jax.tree.structure(filled) == jax.tree.structure(shapes_of(full))
    added = count_parameters(full) - count_parameters(decoder)
    assert added == 2 * (2 * 32 + 4 * 32 + 4 * 32 + 32) + 32
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    # Not bit for bit: with more to add, XLA fuses otherwise.
    np.testing.assert_allclose(
        our_logits(decoder)(params, ids), our_logits(full)(filled, ids), rtol=0, atol=2e-5
    )


def test_names_that_differ_in_layer_are_written_once():
    names = [f"a.{i}.w" for i in (0, 1, 2, 3, 7)] + ["b.w", "c.5.w", "c.50.w"]
    assert compress(names) == ["a.{0..3,7}.w", "b.w", "c.{5,50}.w"]


def test_a_rule_joins_parts_of_different_size_along_any_axis(decoders, random_params):
    """As Phi-3 joins q, k and v of grouped-query attention: along the first dimension."""
    decoder = decoders["llama"]()
    rest = [
        rule
        for rule in family_of(decoder).rules
        if not any(part in str(rule.ours) for part in ("query", "key", "value"))
    ]
    ours = tuple(f"blocks.{{i}}.mixer.{part}.w" for part in ("query", "key", "value"))
    rules = [*rest, Rule(ours, "layers.{i}.qkv_proj.weight", "(n h) d -> d n h", axis=0)]
    params = random_params(decoder)
    tensors = tensors_of(decoder, params, rules)
    assert tensors["layers.1.qkv_proj.weight"]().shape == ((4 + 2 + 2) * 8, 32)
    assert equal(import_tree(decoder, tensors, rules), params)


@pytest.mark.parametrize(
    ("decoder", "billions"), [(gpt2_124m(), 0.124), (llama3_8b(), 8.03)], ids=["gpt2", "llama"]
)
def test_published_sizes_are_planned_without_arrays(decoder, billions):
    shapes = export_shapes(decoder, family_of(decoder).rules)
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    assert count == pytest.approx(billions * 1e9, rel=0.01)
