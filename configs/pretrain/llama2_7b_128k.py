"""Llama 2 7B at length 131,072 on 400 billion tokens.

Positions turn with base 500,000, the slow ones stretched eight times, as Llama 3.1 does for this
length (Grattafiori 2024, arXiv:2407.21783); a step has Llama 2's four million tokens.  The run
begins at its full length with fresh weights, so the peak is Llama 2's own 3e-4.
Four chips share a row: each has a quarter of its positions and gathers the others' keys.
Data: Llama 2's tokenizer.model in data/llama2 (or one of your own: 32,000 ids), and shards of long
documents, by
lm corpus tokenize books/ --tokenizer data/llama2 --out data/long --held-out 0.001

lm plan configs/pretrain/llama2_7b_128k.py --topology v5p:4x4x8
Fits: 59.27 of 95.73 GiB a device; MFU at most 88.0 %, a step 11.6 s or longer:
362 k tokens a second, 400 B in 12.8 days, 39.3 k chip-hours.
"""

from lm.data.mixture import Mixture, Weighted
from lm.data.shards import Shards
from lm.experiment import Evaluation, Experiment
from lm.layers.execution import Execution
from lm.layers.position import LlamaScaling, Rope
from lm.models.llama import llama
from lm.optim.adamw import AdamW
from lm.optim.schedule import Cosine
from lm.parallel.mesh import Mesh, Parallel
from lm.tokenizers.sentencepiece import SentencePiece
from lm.train.step import Training


def experiment() -> Experiment:
    """The run."""
    rope = Rope(theta=500_000.0, scaling=LlamaScaling(factor=8.0, original_length=8192))
    return Experiment(
        name="llama2_7b_128k",
        model=llama(32_000, width=4096, blocks=32, num_heads=32, mlp=11_008, rope=rope),
        tokenizer=SentencePiece(path="data/llama2"),
        data=Mixture(sources=(Weighted(source=Shards(path="data/long")),)),
        training=Training(steps=95_400, sequences=32, length=131_072),
        optimizer=AdamW(schedule=Cosine(peak=3e-4, warmup=2_000)),
        execution=Execution(compute_dtype="bfloat16", remat="attention", save=("qkv", "out")),
        parallel=Parallel(mesh=Mesh(context=4)),
        evaluation=Evaluation(every=2_000),
    )
