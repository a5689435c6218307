"""A Llama of 25M parameters for a few steps: what tests/benchmarks/startup.py launches."""

from lm.data.mixture import Mixture, Weighted
from lm.data.synthetic import Synthetic
from lm.experiment import Evaluation, Experiment
from lm.models.llama import llama
from lm.optim.adamw import AdamW
from lm.optim.schedule import Constant
from lm.tokenizers.bytes import Bytes
from lm.train.step import Training


def experiment() -> Experiment:
    """The run."""
    return Experiment(
        name="startup_25m",
        model=llama(1024, width=512, blocks=8, num_heads=8, mlp=1408, tied=True),
        tokenizer=Bytes(),
        data=Mixture(sources=(Weighted(source=Synthetic(vocab_size=259)),)),
        training=Training(steps=2, sequences=4, length=128),
        optimizer=AdamW(schedule=Constant(peak=1e-3, warmup=1)),
        evaluation=Evaluation(evaluators=()),
    )
