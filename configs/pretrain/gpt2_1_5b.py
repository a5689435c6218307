"""GPT-2 1.5B (XL) on 300 billion tokens, as the GPT-3 model of its size was trained.

A million tokens a step, peak 2e-4, 375M tokens of warm-up, cosine to a tenth (Brown 2020,
arXiv:2005.14165, table 2.1, GPT-3 XL, and appendix B).
Data: GPT-2's vocab.json and merges.txt in data/gpt2, and shards of OpenWebText or its like, by
lm corpus tokenize text/ --tokenizer data/gpt2 --out data/openwebtext --held-out 0.0005

lm plan configs/pretrain/gpt2_1_5b.py --topology v5e:8x8
Fits: 9.25 of 15.75 GiB a device; MFU at most 76.3 %, a step 1.07 s or longer:
982 k tokens a second, 300 B in 3.5 days, 5.43 k chip-hours.
"""

from lm.data.mixture import Mixture, Weighted
from lm.data.shards import Shards
from lm.experiment import Evaluation, Experiment
from lm.layers.execution import Execution
from lm.models.gpt2 import gpt2_1558m
from lm.optim.adamw import AdamW
from lm.optim.schedule import Cosine
from lm.tokenizers.huggingface import HuggingFace
from lm.train.step import Training


def experiment() -> Experiment:
    """The run."""
    return Experiment(
        name="gpt2_1_5b",
        model=gpt2_1558m(),
        tokenizer=HuggingFace(path="data/gpt2"),
        data=Mixture(sources=(Weighted(source=Shards(path="data/openwebtext")),)),
        training=Training(steps=286_000, sequences=1024, length=1024),
        optimizer=AdamW(schedule=Cosine(peak=2e-4, warmup=358)),
        execution=Execution(compute_dtype="bfloat16", remat="attention"),
        evaluation=Evaluation(every=5_000),
    )
