"""GPT-2 124M on 300 billion tokens, as GPT-3's smallest model was trained.

Half a million tokens a step, peak 6e-4, 2,000 steps of warm-up, cosine to a tenth (Brown 2020,
arXiv:2005.14165, table 2.1 and appendix B); these are nanoGPT's figures for OpenWebText too.
Data: GPT-2's vocab.json and merges.txt in data/gpt2, and shards of OpenWebText or its like, by
lm corpus tokenize text/ --tokenizer data/gpt2 --out data/openwebtext --held-out 0.0005

lm plan configs/pretrain/gpt2_124m.py --topology v5e:2x4
Fits: 12.13 of 15.75 GiB a device; MFU at most 96.6 %, a step 0.258 s or longer:
1.91 M tokens a second, 295 B in 1.8 days, 343 chip-hours.
"""

from lm.data.mixture import Mixture, Weighted
from lm.data.shards import Shards
from lm.experiment import Evaluation, Experiment
from lm.layers.execution import Execution
from lm.models.gpt2 import gpt2_124m
from lm.optim.adamw import AdamW
from lm.optim.schedule import Cosine
from lm.parallel.mesh import Mesh, Parallel
from lm.tokenizers.huggingface import HuggingFace
from lm.train.step import Training


def experiment() -> Experiment:
    """The run."""
    return Experiment(
        name="gpt2_124m",
        model=gpt2_124m(),
        tokenizer=HuggingFace(path="data/gpt2"),
        data=Mixture(sources=(Weighted(source=Shards(path="data/openwebtext")),)),
        training=Training(steps=600_000, sequences=480, length=1024, microbatches=5),
        optimizer=AdamW(schedule=Cosine(peak=6e-4, warmup=2_000)),
        execution=Execution(compute_dtype="bfloat16"),
        parallel=Parallel(mesh=Mesh(data=-1, fsdp=1)),
        evaluation=Evaluation(every=5_000),
    )
