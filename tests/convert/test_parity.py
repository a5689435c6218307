"""Our logits are transformers' logits; needs torch and transformers."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from lm.convert.card import Facts
from lm.convert.export import export
from lm.convert.families import family_of
from lm.convert.safetensors import open_tensors
from lm.convert.weights import import_tree
from lm.layers.position import LlamaScaling, Rope
from lm.models.llama import llama
from lm.tokenizers.bytes import ByteTokenizer

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTH = 160
"""Longer than the knees of the stretched rotary positions (12 and 48)."""
FACTS = Facts(name="tiny", length=LENGTH, step=1, tokens=1)
TOKENIZER = ByteTokenizer()


def some_ids(decoder):
    rng = np.random.default_rng(0)
    return rng.integers(0, decoder.vocab_size, (2, LENGTH), dtype=np.int32)


def their_logits(folder, ids, dtype=torch.float32):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(ids).long()).logits.float().numpy()


@pytest.mark.parametrize("shard_bytes", [10**9, 20_000], ids=["one file", "many files"])
def test_logits_agree(decoder, random_params, our_logits, tmp_path, shard_bytes):
    """All tensors random; logits of deviation 1 or more; float32, to 1e-4."""
    params = random_params(decoder)
    done = export(decoder, params, TOKENIZER, tmp_path / "o", facts=FACTS, shard_bytes=shard_bytes)
    assert (len(done.files) > 10) == (shard_bytes < 10**9)
    ids = some_ids(decoder)
    ours, theirs = our_logits(decoder)(params, ids), their_logits(tmp_path / "o", ids)
    assert ours.std() >= 1
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama with biases"])
def test_any_two_swapped_rules_of_equal_shape_change_the_logits(
    decoders, random_params, our_logits, name, tmp_path
):
    """The table is checked against transformers itself, not only against its own inverse."""
    decoder = decoders[name]()
    family = family_of(decoder)
    done = export(decoder, random_params(decoder), TOKENIZER, tmp_path / "o", facts=FACTS)
    tensors = open_tensors(done.folder)
    ids = some_ids(decoder)
    theirs = their_logits(done.folder, ids)
    model = our_logits(decoder)
    used = [rule for rule in family.rules if rule.theirs.replace("{i}", "0") in tensors]
    right = import_tree(decoder, tensors, used)
    np.testing.assert_allclose(model(right, ids), theirs, rtol=0, atol=1e-4)
    swaps = 0
    for i, one in enumerate(used):
        for other in used[i + 1 :]:
            first, second = (tensors[r.theirs.replace("{i}", "0")]().shape for r in (one, other))
            if first != second or ("{i}" in one.theirs) != ("{i}" in other.theirs):
                continue
            names = {one.theirs: other.theirs, other.theirs: one.theirs}
            swapped = [replace(r, theirs=names.get(r.theirs, r.theirs)) for r in used]
            wrong = import_tree(decoder, tensors, swapped)
            swaps += 1
            assert np.abs(model(wrong, ids) - theirs).max() > 1e-2, (one.theirs, other.theirs)
    assert swaps >= 6


@pytest.mark.parametrize("name", ["gpt2 padded", "llama stretched"])
def test_auto_classes_load_the_folder_and_generate(decoders, random_params, name, tmp_path):
    decoder = decoders[name]()
    export(decoder, random_params(decoder), TOKENIZER, tmp_path / "o", facts=FACTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "o")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "o")
    text = "Enter  ROMEO,\nné"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == TOKENIZER.encode(text)
    assert (
        model.config.eos_token_id == TOKENIZER.special.eos == model.generation_config.eos_token_id
    )
    ids = tokenizer(text, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=3, min_new_tokens=3)
    assert out.shape[1] == ids["input_ids"].shape[1] + 3


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_bfloat16_weights_load_as_such(decoders, random_params, our_logits, name, tmp_path):
    decoder = decoders[name]()
    params = random_params(decoder)
    coarse = jax.tree.map(lambda x: np.asarray(x.astype(jax.numpy.bfloat16), np.float32), params)
    export(decoder, params, TOKENIZER, tmp_path / "o", facts=FACTS, dtype="bfloat16")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "o")
    assert model.dtype == torch.bfloat16
    ids = some_ids(decoder)
    theirs = their_logits(tmp_path / "o", ids)
    np.testing.assert_allclose(theirs, our_logits(decoder)(coarse, ids), rtol=0, atol=1e-4)


def test_no_weight_is_missing_or_left_over(decoder, random_params, tmp_path):
    export(decoder, random_params(decoder), TOKENIZER, tmp_path / "o", facts=FACTS)
    _, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "o", output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[kind]


def test_both_spellings_of_rotary_positions_load_alike(
    decoders, random_params, our_logits, tmp_path
):
    """transformers 4 wrote rope_theta and rope_scaling, 5 writes rope_parameters."""
    decoder = decoders["llama stretched"]()
    params = random_params(decoder)
    export(decoder, params, TOKENIZER, tmp_path / "o", facts=FACTS)
    path = tmp_path / "o" / "config.json"
    whole = json.loads(path.read_text())
    ids = some_ids(decoder)
    ours = our_logits(decoder)(params, ids)
    for absent in (["rope_parameters"], ["rope_theta", "rope_scaling"]):
        path.write_text(json.dumps({k: v for k, v in whole.items() if k not in absent}))
        np.testing.assert_allclose(their_logits(tmp_path / "o", ids), ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama stretched", "llama tied"])
def test_what_transformers_saves_is_read_by_the_same_table(decoders, random_params, name, tmp_path):
    decoder = decoders[name]()
    params = random_params(decoder)
    export(decoder, params, TOKENIZER, tmp_path / "o", facts=FACTS)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "o")
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    family = family_of(decoder)
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    again = family.from_config(config)
    assert again.blocks == decoder.blocks
    found = import_tree(again, open_tensors(tmp_path / "theirs"), family.rules)
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_logits_agree_at_position_two_thousand(random_params, our_logits, tmp_path):
    """Where one unit in the last place of a rotary frequency would show."""
    rope = Rope(theta=500_000.0, scaling=LlamaScaling(original_length=512))
    decoder = llama(259, width=256, blocks=4, num_heads=4, num_kv_heads=2, mlp=512, rope=rope)
    params = random_params(decoder)
    export(decoder, params, TOKENIZER, tmp_path / "o", facts=FACTS)
    ids = np.random.default_rng(0).integers(0, 259, (1, 2048), dtype=np.int32)
    theirs = their_logits(tmp_path / "o", ids)
    np.testing.assert_allclose(theirs, our_logits(decoder)(params, ids), rtol=0, atol=1e-4)
