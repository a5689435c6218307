import json
import shutil
from collections import namedtuple

import jax
import numpy as np
import pytest

from lm.convert.card import Facts
from lm.convert.export import export
from lm.convert.families import family_of
from lm.convert.safetensors import open_tensors
from lm.convert.weights import complete, import_tree
from lm.errors import ConversionError, ResourceError
from lm.layers.norm import RmsNorm
from lm.tokenizers.bytes import ByteTokenizer
from lm.tokenizers.load import load_tokenizer

FACTS = Facts(
    name='bytes | of "verse"',
    length=128,
    step=1_000,
    tokens=4_096_000,
    data=("Shakespeare's works",),
    held_out_loss=1.5,
    bits_per_byte=2.1,
    commit="abc123",
    versions={"jax": "0.10.2"},
    licence="apache-2.0",
)
TOKENIZER = ByteTokenizer()


def test_exported_folder_gives_the_model_back(decoder, random_params, tmp_path):
    params = random_params(decoder)
    done = export(decoder, params, TOKENIZER, tmp_path / "out", facts=FACTS)
    family = family_of(decoder)
    full = family.complete(decoder)
    config = json.loads((done.folder / "config.json").read_text())
    assert family.from_config(config).blocks == full.blocks
    again = import_tree(full, open_tensors(done.folder), family.rules)
    jax.tree.map(np.testing.assert_array_equal, again, complete(params, full))
    assert done.family == family.name
    assert sorted(done.files) == sorted(f.name for f in done.folder.iterdir())


def test_ids_and_sizes_stand_in_the_configs(decoders, random_params, tmp_path):
    decoder = decoders["gpt2 padded"]()
    export(
        decoder, random_params(decoder), TOKENIZER, tmp_path / "o", facts=FACTS, dtype="bfloat16"
    )
    config = json.loads((tmp_path / "o" / "config.json").read_text())
    ids = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
    assert ids.items() <= config.items()
    assert config["vocab_size"] == 320
    assert config["n_positions"] == 160
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert config["dtype"] == "bfloat16"
    generation = json.loads((tmp_path / "o" / "generation_config.json").read_text())
    assert ids.items() <= generation.items()


def test_tokenizer_travels_with_the_export(decoders, random_params, tmp_path):
    decoder = decoders["llama"]()
    export(decoder, random_params(decoder), TOKENIZER, tmp_path / "o", facts=FACTS)
    again = load_tokenizer(tmp_path / "o")
    text = "Enter  ROMEO:\n né 🙂"
    assert again.encode(text) == TOKENIZER.encode(text)
    assert again.special.eos == TOKENIZER.special.eos


def test_card_tells_the_facts(decoders, random_params, tmp_path):
    decoder = decoders["llama"]()
    done = export(decoder, random_params(decoder), TOKENIZER, tmp_path / "o", facts=FACTS)
    card = (tmp_path / "o" / "README.md").read_text()
    for fact in (
        f"{done.parameters:,}",
        "4,096,000",
        "1,000",
        "Shakespeare's works",
        "1.5000 nats",
        "4.48",
        "2.1000",
        "jax 0.10.2",
        "abc123",
        'license: "apache-2.0"',
        "LlamaForCausalLM",
        "AutoModelForCausalLM",
    ):
        assert fact in card


def test_card_of_a_run_without_scores_says_so(decoders, random_params, tmp_path):
    bare = Facts(name="bare", length=8, step=1, tokens=8)
    decoder = decoders["llama"]()
    export(decoder, random_params(decoder), TOKENIZER, tmp_path / "o", facts=bare)
    card = (tmp_path / "o" / "README.md").read_text()
    assert "| held out | not measured |" in card
    assert 'license: "unknown"' in card


def test_a_folder_that_is_taken_is_refused(decoders, random_params, tmp_path):
    decoder = decoders["llama"]()
    params = random_params(decoder)
    (tmp_path / "empty").mkdir()
    export(decoder, params, TOKENIZER, tmp_path / "empty", facts=FACTS)
    with pytest.raises(ConversionError, match="holds files already"):
        export(decoder, params, TOKENIZER, tmp_path / "empty", facts=FACTS)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConversionError, match="is a file"):
        export(decoder, params, TOKENIZER, tmp_path / "file", facts=FACTS)
    with pytest.raises(ConversionError, match="cannot be written"):
        export(decoder, params, TOKENIZER, tmp_path / "file" / "under", facts=FACTS)


def test_refused_exports_leave_nothing(
    decoders, random_params, change_attention, tmp_path, monkeypatch
):
    out = tmp_path / "o"
    odd = change_attention(decoders["llama"](), qk_norm=RmsNorm())
    with pytest.raises(ConversionError, match="qk_norm"):
        export(odd, random_params(odd), TOKENIZER, out, facts=FACTS)
    small = decoders["llama"]()
    params = jax.tree.map(lambda x: x * 1e6, random_params(small))
    with pytest.raises(ConversionError, match="float16"):
        export(small, params, TOKENIZER, out, facts=FACTS, dtype="float16")
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1_000))
        with pytest.raises(ResourceError, match=r"needs 0\.05 GB"):
            export(small, params, TOKENIZER, out, facts=FACTS)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_larger_than_the_model_is_refused(decoders, random_params, tmp_path):
    decoder = decoders["llama"]()
    big = ByteTokenizer()
    big.vocab_size = 300
    with pytest.raises(ConversionError, match="300 ids, the model only 259"):
        export(decoder, random_params(decoder), big, tmp_path / "o", facts=FACTS)
