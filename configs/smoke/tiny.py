"""A run that ends within a minute on a laptop: synthetic tokens, a Llama of two blocks."""

from lm.data.mixture import Mixture, Weighted
from lm.data.synthetic import Synthetic
from lm.experiment import Evaluation, Experiment
from lm.models.llama import llama_tiny
from lm.optim.adamw import AdamW
from lm.optim.schedule import Cosine
from lm.tokenizers.bytes import Bytes
from lm.train.step import Training


def experiment() -> Experiment:
    """The run."""
    return Experiment(
        name="tiny",
        model=llama_tiny(320),
        tokenizer=Bytes(),
        data=Mixture(sources=(Weighted(source=Synthetic(vocab_size=259)),)),
        training=Training(steps=40, sequences=8, length=64),
        optimizer=AdamW(schedule=Cosine(peak=1e-2, warmup=5)),
        evaluation=Evaluation(evaluators=()),
    )
