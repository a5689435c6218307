"""A model on a mesh: the one place where a model's build meets the devices."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm.batch import Batch, Params, Tokens
from lm.errors import ShardingError
from lm.layers.execution import DTYPES, Execution
from lm.layers.placement import Placement
from lm.models.model import Model
from lm.ops.attention.zigzag import Shard, chunk_length, unzigzag, zigzag
from lm.parallel.explicit import Explicit
from lm.parallel.mesh import ROW_AXES, Parallel, make_mesh, size
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
            ShardingError: rows or positions that cannot be split evenly over the token axes.
        """
        self._check_rows(rows)
        if (shards := size(self.mesh, "context")) > 1:
            chunk_length(length, shards)
        parts = spec(("batch", "position"), self.explicit.rules, self.mesh)
        grid = NamedSharding(self.mesh, parts)
        row = NamedSharding(self.mesh, P(parts[0]))
        ids = jax.ShapeDtypeStruct((rows, length), "int32", sharding=grid)
        weights = jax.ShapeDtypeStruct((rows, length), "float32", sharding=grid)
        numbers = jax.ShapeDtypeStruct((rows,), "int32", sharding=row)
        return Batch(Tokens(ids, ids, ids), ids, weights, numbers)

    @property
    def batch_specs(self) -> Batch:
        """How the parts of a batch enter the explicit region."""
        grid, row = (self.explicit.spec(a) for a in (("batch", "position"), ("batch",)))
        return Batch(Tokens(grid, grid, grid), grid, grid, row)

    def spread(self, batch: Any) -> Any:
        """Lay the positions of [B, T] arrays out so that every context shard has equal work."""
        return self._reordered(batch, zigzag)

    def in_order(self, tree: Any) -> Any:
        """Undo ``spread``."""
        return self._reordered(tree, unzigzag)

    def _reordered(self, tree: Any, order: Callable[[int, int], np.ndarray]) -> Any:
        shards = size(self.mesh, "context")
        if shards == 1:
            return tree
        return jax.tree.map(lambda x: x[:, order(x.shape[1], shards)] if x.ndim > 1 else x, tree)

    def _check_rows(self, rows: int) -> None:
        ways = row_shards(self.mesh)
        if rows % ways:
            near = [max(ways, rows // ways * ways), (rows // ways + 1) * ways]
            over = " x ".join(
                f"{axis} {size(self.mesh, axis)}"
                for axis in ROW_AXES
                if axis in ("data", "fsdp") or size(self.mesh, axis) > 1
            )
            raise ShardingError(
                f"a batch of {rows} rows cannot be split evenly over {ways} devices ({over}). "
                f"Use {' or '.join(str(n) for n in dict.fromkeys(near))} rows, or give those "
                "devices to tensor or context."
            )


def row_shards(mesh: jax.sharding.Mesh) -> int:
    """How many ways the rows of a batch are split."""
    return size(mesh, *ROW_AXES)


def place_model(
    config: ModelConfig, execution: Execution, parallel: Parallel, devices: Sequence[Any]
) -> Placed:
    """Build a model for these devices; by shapes alone, nothing is allocated.

    Raises:
        ShardingError: a mesh or rule table that does not fit the devices or the parameters.
    """
    compute = DTYPES[execution.compute_dtype]
    reduce = DTYPES[execution.reduce_dtype or execution.compute_dtype]
    platform = devices[0].platform
    if platform == "cpu":
        # XLA's CPU compiler adds bfloat16 in float32 anyway, and aborts on a bfloat16
        # reduce-scatter inside a partly manual region (jaxlib 0.10.2).
        reduce = DTYPES["float32"]
    explicit = Explicit(
        make_mesh(parallel.mesh, devices),
        parallel.rules,
        compute,
        reduce,
        rings=parallel.collectives == "rings",
    )
    alone = len(devices) == 1
    shards = size(explicit.mesh, "context")

    def row_shard() -> Shard | None:
        return None if shards == 1 else Shard(explicit.row_index(), shards)

    placement = (
        Placement(platform=platform)
        if alone
        else Placement(
            explicit.gather,
            explicit.constrain,
            explicit.whole_rows,
            row_shard,
            alone=False,
            platform=platform,
            flat=size(explicit.mesh, "tensor") == 1,
            local=explicit.local,
        )
    )
    model = config.build(execution, placement)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    where = shardings(model.leaves, shapes, parallel.rules, explicit.mesh)
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where
    )
    return Placed(model, explicit, params)
