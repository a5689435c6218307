"""Pretrain, evaluate and export language models in JAX.

Floors, top to bottom; every import goes down:

    9  lm.cli         verbs; the only place that parses arguments
    8  lm.run         a run on disk and devices, from its first look at the folder to its last save
       lm.assemble    Experiment -> live things; the only place that knows everybody
    7  lm.experiment  the menu: every choice a run may make
    6  lm.evaluate
    5  lm.train  lm.generate  lm.convert
    4  lm.models  lm.checkpoint  lm.corpus
    3  lm.layers  lm.objectives  lm.data
    2  lm.ops  lm.parallel  lm.optim  lm.tokenizers  lm.track
    1  lm.batch  lm.shards  lm.config  lm.errors
"""

__version__ = "0.1.0"
