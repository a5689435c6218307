"""Llama 2 7B on 2 trillion tokens, as published.

Four million tokens a step of rows of 4,096, peak 3e-4, 2,000 steps of warm-up, cosine to a tenth,
AdamW 0.9 / 0.95, decay 0.1, clipped at 1 (Touvron 2023, arXiv:2307.09288, section 2.2).
Data: Llama 2's tokenizer.model in data/llama2 (or one of your own: 32,000 ids), and shards, by
lm corpus tokenize text/ --tokenizer data/llama2 --out data/text --held-out 0.0001

lm plan configs/pretrain/llama2_7b.py --topology v5e:16x16
Fits: 8.43 of 15.75 GiB a device; MFU at most 76.2 %, a step 4.68 s or longer:
897 k tokens a second, 2.00 T in 25.8 days, 159 k chip-hours.
"""

from lm.data.mixture import Mixture, Weighted
from lm.data.shards import Shards
from lm.experiment import Evaluation, Experiment
from lm.layers.execution import Execution
from lm.models.llama import llama2_7b
from lm.optim.adamw import AdamW
from lm.optim.schedule import Cosine
from lm.tokenizers.sentencepiece import SentencePiece
from lm.train.step import Training


def experiment() -> Experiment:
    """The run."""
    return Experiment(
        name="llama2_7b",
        model=llama2_7b(),
        tokenizer=SentencePiece(path="data/llama2"),
        data=Mixture(sources=(Weighted(source=Shards(path="data/text")),)),
        training=Training(steps=477_000, sequences=1024, length=4096),
        optimizer=AdamW(schedule=Cosine(peak=3e-4, warmup=2_000)),
        execution=Execution(compute_dtype="bfloat16", remat="block"),
        evaluation=Evaluation(every=5_000),
    )
