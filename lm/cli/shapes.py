"""The program of a config, built before the verb that runs it is loaded.

Orbax and Grain take as long to load as JAX and Flax, and what is wrong of a mesh, a batch or a
shape is known without them.
"""

import jax

from lm import assemble
from lm.experiment import Experiment
from lm.parallel import distributed, memory
from lm.train.program import Program


def program_of(experiment: Experiment, *, joined: bool) -> Program:
    """What the run compiles on the devices that are here.

    Args:
        experiment: the run.
        joined: join the other processes of the run first.

    Raises:
        ShardingError, ConfigError: parts that do not fit each other or the devices.
    """
    if joined:
        memory.use_one_pool()
        distributed.start()
    return assemble.program(experiment, jax.devices())
