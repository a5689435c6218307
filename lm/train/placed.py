"""A model on a mesh: the one place where a model's build meets the devices."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm.batch import Batch, Params, Tokens
from lm.errors import ShardingError
from lm.layers.execution import DTYPES, Execution
from lm.layers.placement import Placement
from lm.models.model import Model
from lm.parallel.explicit import Explicit
from lm.parallel.mesh import Parallel, make_mesh
from lm.parallel.shardings import shardings, spec


@runtime_checkable
class ModelConfig(Protocol):
    """What every architecture config offers."""

    def build(self, execution: Execution, placement: Placement | None = None) -> Model:
        """The functions of the model."""
        ...


class Placed(NamedTuple):
    """A model whose arrays have their places."""

    model: Model
    explicit: Explicit
    params: Params
    """Abstract parameters: shape, dtype and sharding."""

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The device grid."""
        return self.explicit.mesh

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of what every device holds whole."""
        return NamedSharding(self.mesh, P())

    def batch(self, rows: int, length: int) -> Batch:
        """An abstract global batch.

        Raises:
            ShardingError: rows that cannot be split evenly over the token axes.
        """
        parts = spec(("batch", "position"), self.explicit.rules, self.mesh)
        ways = row_shards(self.mesh)
        if rows % ways:
            near = [max(ways, rows // ways * ways), (rows // ways + 1) * ways]
            raise ShardingError(
                f"a batch of {rows} rows cannot be split evenly over {ways} devices "
                f"(data {self.mesh.shape['data']} x fsdp {self.mesh.shape['fsdp']}). "
                f"Use {' or '.join(str(n) for n in dict.fromkeys(near))} rows, or give those "
                "devices to tensor."
            )
        grid = NamedSharding(self.mesh, parts)
        row = NamedSharding(self.mesh, P(parts[0]))
        ids = jax.ShapeDtypeStruct((rows, length), "int32", sharding=grid)
        weights = jax.ShapeDtypeStruct((rows, length), "float32", sharding=grid)
        numbers = jax.ShapeDtypeStruct((rows,), "int32", sharding=row)
        return Batch(Tokens(ids, ids, ids), ids, weights, numbers)


def row_shards(mesh: jax.sharding.Mesh) -> int:
    """How many ways the rows of a batch are split."""
    return mesh.shape["slices"] * mesh.shape["data"] * mesh.shape["fsdp"]


def place_model(
    config: ModelConfig, execution: Execution, parallel: Parallel, devices: Sequence[Any]
) -> Placed:
    """Build a model for these devices; by shapes alone, nothing is allocated.

    Raises:
        ShardingError: a mesh or rule table that does not fit the devices or the parameters.
    """
    compute = DTYPES[execution.compute_dtype]
    reduce = DTYPES[execution.reduce_dtype or execution.compute_dtype]
    if devices[0].platform == "cpu":
        # XLA's CPU compiler adds bfloat16 in float32 anyway, and aborts on a bfloat16
        # reduce-scatter inside a partly manual region (jaxlib 0.10.2).
        reduce = DTYPES["float32"]
    explicit = Explicit(make_mesh(parallel.mesh, devices), parallel.rules, compute, reduce)
    alone = len(devices) == 1
    placement = Placement() if alone else Placement(explicit.gather, explicit.constrain)
    model = config.build(execution, placement)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    where = shardings(model.leaves, shapes, parallel.rules, explicit.mesh)
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where
    )
    return Placed(model, explicit, params)
