"""Llama 2 7B at length 32,768 on 400 billion tokens.

Positions turn with base 500,000, and a step has Llama 2's four million tokens, as in Llama 2 Long
(Xiong 2023, arXiv:2309.16039), which went on from a model of length 4,096 with a peak of 2e-5.
This run begins at its full length with fresh weights, so the peak is Llama 2's own 3e-4.
A row fills a chip; there are as many rows as chips.
Data: Llama 2's tokenizer.model in data/llama2 (or one of your own: 32,000 ids), and shards of long
documents, by
lm corpus tokenize books/ --tokenizer data/llama2 --out data/long --held-out 0.001

lm plan configs/pretrain/llama2_7b_32k.py --topology v5p:4x4x8
Fits: 55.51 of 95.73 GiB a device; MFU at most 88.4 %, a step 5.28 s or longer:
794 k tokens a second, 400 B in 5.8 days, 17.9 k chip-hours.
"""

from lm.data.mixture import Mixture, Weighted
from lm.data.shards import Shards
from lm.experiment import Evaluation, Experiment
from lm.layers.execution import Execution
from lm.layers.position import Rope
from lm.models.llama import llama
from lm.optim.adamw import AdamW
from lm.optim.schedule import Cosine
from lm.tokenizers.sentencepiece import SentencePiece
from lm.train.step import Training


def experiment() -> Experiment:
    """The run."""
    rope = Rope(theta=500_000.0)
    return Experiment(
        name="llama2_7b_32k",
        model=llama(32_000, width=4096, blocks=32, num_heads=32, mlp=11_008, rope=rope),
        tokenizer=SentencePiece(path="data/llama2"),
        data=Mixture(sources=(Weighted(source=Shards(path="data/long")),)),
        training=Training(steps=95_400, sequences=128, length=32_768),
        optimizer=AdamW(schedule=Cosine(peak=3e-4, warmup=2_000)),
        execution=Execution(compute_dtype="bfloat16", remat="attention", save=("qkv", "out")),
        evaluation=Evaluation(every=2_000),
    )
