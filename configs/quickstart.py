"""A small Llama on the works of Shakespeare: text to samples in under three minutes on two cores.

Trains a SentencePiece tokenizer of 2,048 ids on 38 of the works that come with the package and
holds out Macbeth, Twelfth Night, Henry V and The Tempest.
"""

from lm.corpus.prepare import Prepare, TrainTokenizer
from lm.experiment import Evaluation, Experiment, Samples
from lm.models.llama import llama
from lm.optim.muon import Muon
from lm.optim.schedule import Wsd
from lm.train.step import Training


def experiment() -> Experiment:
    """The run."""
    return Experiment(
        name="quickstart",
        model=llama(2048, width=96, blocks=4, num_heads=3, mlp=288, tied=True),
        prepare=Prepare(
            sources=("embedded:shakespeare",),
            tokenizer=TrainTokenizer(vocab_size=2048),
            held_out=(
                "macbeth_gut.txt",
                "twelfth_night_gut.txt",
                "henry_v_gut.txt",
                "tempest_gut.txt",
            ),
        ),
        training=Training(steps=880, sequences=8, length=256),
        optimizer=Muon(schedule=Wsd(peak=1e-2, warmup=30, decay=0.6)),
        evaluation=Evaluation(samples=Samples(prompts=("",), each=5, tokens=300, temperature=0.8)),
    )
