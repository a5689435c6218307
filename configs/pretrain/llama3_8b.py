"""Llama 3 8B on 15 trillion tokens at length 8,192.

Eight million tokens a step, peak 3e-4, 8,000 steps of warm-up, cosine to a hundredth
(Grattafiori 2024, arXiv:2407.21783, table 3 and section 3.4.1).  The paper's largest model grows
its batch from 4 to 16 million tokens; this one keeps 8.
Data: Llama 3's tokenizer.json in data/llama3, and shards, by
lm corpus tokenize text/ --tokenizer data/llama3 --out data/text --held-out 0.0001

lm plan configs/pretrain/llama3_8b.py --topology v6e:16x16
Fits: 16.73 of 31.24 GiB a device; MFU at most 73.0 %, a step 2.52 s or longer:
3.33 M tokens a second, 15.1 T in 52.4 days, 322 k chip-hours.
"""

from lm.data.mixture import Mixture, Weighted
from lm.data.shards import Shards
from lm.experiment import Evaluation, Experiment
from lm.layers.execution import Execution
from lm.models.llama import llama3_8b
from lm.optim.adamw import AdamW
from lm.optim.schedule import Cosine
from lm.tokenizers.huggingface import HuggingFace
from lm.train.step import Training


def experiment() -> Experiment:
    """The run."""
    return Experiment(
        name="llama3_8b",
        model=llama3_8b(),
        tokenizer=HuggingFace(path="data/llama3"),
        data=Mixture(sources=(Weighted(source=Shards(path="data/text")),)),
        training=Training(steps=1_800_000, sequences=1024, length=8192),
        optimizer=AdamW(schedule=Cosine(peak=3e-4, warmup=8_000, floor=0.01)),
        execution=Execution(compute_dtype="bfloat16", remat="block"),
        evaluation=Evaluation(every=5_000),
    )
