"""Llama 3 70B on 15 trillion tokens at length 8,192.

Eight million tokens a step, peak 1.5e-4, 8,000 steps of warm-up, cosine to a hundredth
(Grattafiori 2024, arXiv:2407.21783, table 3 and section 3.4.1).  The paper's largest model grows
its batch from 4 to 16 million tokens; this one keeps 8.
Data: Llama 3's tokenizer.json in data/llama3, and shards, by
lm corpus tokenize text/ --tokenizer data/llama3 --out data/text --held-out 0.0001

lm plan configs/pretrain/llama3_70b.py --topology v5p:8x8x8
Fits: 50.38 of 95.73 GiB a device; MFU at most 73.7 %, a step 21.8 s or longer:
385 k tokens a second, 15.1 T in 453.5 days, 5.57 M chip-hours.
"""

from lm.data.mixture import Mixture, Weighted
from lm.data.shards import Shards
from lm.experiment import Evaluation, Experiment
from lm.layers.execution import Execution
from lm.models.llama import llama3_70b
from lm.optim.adamw import AdamW
from lm.optim.schedule import Cosine
from lm.tokenizers.huggingface import HuggingFace
from lm.train.step import Training


def experiment() -> Experiment:
    """The run."""
    return Experiment(
        name="llama3_70b",
        model=llama3_70b(),
        tokenizer=HuggingFace(path="data/llama3"),
        data=Mixture(sources=(Weighted(source=Shards(path="data/text")),)),
        training=Training(steps=1_800_000, sequences=1024, length=8192),
        optimizer=AdamW(schedule=Cosine(peak=1.5e-4, warmup=8_000, floor=0.01)),
        execution=Execution(compute_dtype="bfloat16", remat="attention", vocab_pieces=6),
        evaluation=Evaluation(every=5_000),
    )
