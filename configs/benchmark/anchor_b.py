"""Case B: Llama-2 7B on v5p:4x4x4, 4 x 4,096 tokens a chip, FSDP 64, recomputing no product.

For comparison with MaxText's step of the same model, batch, slice and recomputation:
lm plan configs/benchmark/anchor_b.py --topology v5p:4x4x4
"""

from lm.data.mixture import Mixture, Weighted
from lm.data.shards import Shards
from lm.experiment import Experiment
from lm.layers.execution import Execution
from lm.models.llama import llama2_7b
from lm.optim.adamw import AdamW
from lm.optim.schedule import Cosine
from lm.parallel.mesh import Parallel
from lm.tokenizers.sentencepiece import SentencePiece
from lm.train.step import Training


def experiment() -> Experiment:
    """The run."""
    return Experiment(
        name="anchor_b",
        model=llama2_7b(),
        tokenizer=SentencePiece(path="data/tokenizer"),
        data=Mixture(sources=(Weighted(source=Shards(path="data/text")),)),
        training=Training(steps=1_000, sequences=256, length=4096),
        optimizer=AdamW(schedule=Cosine(peak=3e-4, warmup=100)),
        execution=Execution(
            compute_dtype="bfloat16",
            remat="block",
            save=("qkv", "out", "gate", "up"),
            vocab_pieces=8,
        ),
        parallel=Parallel(collectives="rings"),
    )
