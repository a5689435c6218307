"""Case A: Llama-2 7B on v5e-256, 4 x 2,048 tokens a chip, FSDP 256, keeping q, k and v.

For comparison with MaxText's step of the same model, batch, slice and recomputation:
lm plan configs/benchmark/anchor_a.py --topology v5e:16x16
"""

from lm.data.mixture import Mixture, Weighted
from lm.data.shards import Shards
from lm.experiment import Experiment
from lm.layers.execution import Execution
from lm.models.llama import llama2_7b
from lm.optim.adamw import AdamW
from lm.optim.schedule import Cosine
from lm.tokenizers.sentencepiece import SentencePiece
from lm.train.step import Training


def experiment() -> Experiment:
    """The run."""
    return Experiment(
        name="anchor_a",
        model=llama2_7b(),
        tokenizer=SentencePiece(path="data/tokenizer"),
        data=Mixture(sources=(Weighted(source=Shards(path="data/text")),)),
        training=Training(steps=1_000, sequences=1024, length=2048),
        optimizer=AdamW(schedule=Cosine(peak=3e-4, warmup=100)),
        execution=Execution(
            compute_dtype="bfloat16",
            remat="block",
            save=("qkv",),
            mlp_pieces=4,
            vocab_pieces=8,
        ),
    )
