"""Own text in three commands; then scored, continued and exported for transformers to load."""

import json

import pytest

from tests.end_to_end.conftest import lm

CONFIG = '''"""Own text."""

from lm.data.mixture import Mixture, Weighted
from lm.data.shards import Shards
from lm.experiment import Experiment
from lm.models.llama import llama
from lm.optim.adamw import AdamW
from lm.optim.schedule import Cosine
from lm.tokenizers.sentencepiece import SentencePiece
from lm.train.step import Training


def experiment() -> Experiment:
    return Experiment(
        name="own",
        model=llama(320, width=32, blocks=2, num_heads=4, num_kv_heads=2, mlp=64),
        tokenizer=SentencePiece(path="tokenizer"),
        data=Mixture(sources=(Weighted(source=Shards(path="shards")),)),
        training=Training(steps=30, sequences=8, length=32),
        optimizer=AdamW(schedule=Cosine(peak=2e-2, warmup=4)),
    )
'''


@pytest.mark.parity
@pytest.mark.slow
def test_own_text_becomes_a_model_that_transformers_loads(text, tmp_path):
    import torch
    import transformers

    (tmp_path / "config.py").write_text(CONFIG)
    lm(["tokenizer", "train", text, "--vocab-size", 320, "--out", "tokenizer"], tmp_path)
    lm(["corpus", "tokenize", text, "--tokenizer", "tokenizer", "--out", "shards",
        "--held-out", 0.2], tmp_path)  # fmt: skip
    lm(["train", "config.py"], tmp_path)
    lm(["evaluate", "runs/own", "--json", "scored.json"], tmp_path)
    scored = json.loads((tmp_path / "scored.json").read_text())
    assert scored["loss"] < 4.5  # guessing is ln 320 = 5.8
    greedy = ["--prompt", "abc def", "--temperature", 0, "--max-tokens", 12]
    lm(["generate", "runs/own", *greedy, "--json", "text.json"], tmp_path)
    (written,) = json.loads((tmp_path / "text.json").read_text())
    lm(["export", "runs/own", "exported"], tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    ids = tokenizer("abc def", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        continued = model.generate(ids, do_sample=False, max_new_tokens=12)
    assert continued[0, ids.shape[1] :].tolist() == written["ids"]
