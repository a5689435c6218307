"""Character by character on tinyshakespeare, in the sizes of nanoGPT's CPU recipe (loss 1.88).

A GPT-2 of 4 blocks, 4 heads and width 128 without biases; length 64, batch 12, 2,000 steps, no
dropout.  The learning rate is ours (nanoGPT: 1e-3 to 1e-4).  Wants data/tinyshakespeare.txt (1.1 MB
of plain text); the last 10 % of its characters are held out, each scored once in windows of 64.
"""

from lm.corpus.prepare import Prepare, TrainTokenizer
from lm.corpus.split import Tail
from lm.experiment import Evaluation, Experiment
from lm.models.gpt2 import gpt2
from lm.optim.adamw import AdamW
from lm.optim.schedule import Cosine
from lm.train.step import Training


def experiment() -> Experiment:
    """The run."""
    return Experiment(
        name="tinyshakespeare_char",
        model=gpt2(72, width=128, blocks=4, num_heads=4, length=64, bias=False),
        prepare=Prepare(
            sources=("data/tinyshakespeare.txt",),
            tokenizer=TrainTokenizer(algorithm="characters"),
            held_out=Tail(fraction=0.1),
        ),
        training=Training(steps=2000, sequences=12, length=64),
        optimizer=AdamW(
            schedule=Cosine(peak=3e-3, warmup=100, floor=0.03),
            b2=0.99,
            decay=0.1,
            decay_tables=True,
        ),
        evaluation=Evaluation(sequences=96),
    )
