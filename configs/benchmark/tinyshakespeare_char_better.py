"""Our own recipe on tinyshakespeare: a Llama trained with Muon, better in no more time.

Four blocks of width 128 with rotary positions and gated MLP; length 64, batch 12, 800 steps.  Wants
data/tinyshakespeare.txt (1.1 MB of plain text); the last 10 % of its characters are held out, each
scored once in windows of 64.
"""

from lm.corpus.prepare import Prepare, TrainTokenizer
from lm.corpus.split import Tail
from lm.experiment import Evaluation, Experiment
from lm.models.llama import llama
from lm.optim.muon import Muon
from lm.optim.schedule import Cosine
from lm.train.step import Training


def experiment() -> Experiment:
    """The run."""
    return Experiment(
        name="tinyshakespeare_char_better",
        model=llama(72, width=128, blocks=4, num_heads=4, mlp=336, tied=True),
        prepare=Prepare(
            sources=("data/tinyshakespeare.txt",),
            tokenizer=TrainTokenizer(algorithm="characters"),
            held_out=Tail(fraction=0.1),
        ),
        training=Training(steps=800, sequences=12, length=64),
        optimizer=Muon(schedule=Cosine(peak=8e-3, warmup=30, floor=0.02)),
        evaluation=Evaluation(sequences=96),
    )
