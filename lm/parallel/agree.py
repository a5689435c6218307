"""Whether any process of a run was asked something: agreed on by all, at the same step."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


class Agreement:
    """Asked once a step, in every process; gives the same answer in all of them.

    What is asked at one step is answered at the next, when the devices have long added it up: so
    nobody waits, and an answer comes within two steps, however long they take.  A process that is
    alone is answered at once.
    """

    def __init__(self) -> None:
        self._alone = jax.process_count() == 1
        mesh = Mesh(np.array(jax.devices()), ("all",), axis_types=(AxisType.Auto,))
        self._each = NamedSharding(mesh, PartitionSpec("all"))
        self._any = jax.jit(
            lambda asked: asked.any(), out_shardings=NamedSharding(mesh, PartitionSpec())
        )
        self._waiting: jax.Array | None = None

    def __call__(self, asked: bool) -> bool:  # noqa: FBT001
        """Whether any process was asked by the step before; ``asked``: this one is now."""
        if self._alone:
            return asked
        own = np.full(jax.local_device_count(), asked)
        with jax.transfer_guard("allow"):
            before = self._waiting
            self._waiting = self._any(jax.make_array_from_process_local_data(self._each, own))
            return before is not None and bool(before)
