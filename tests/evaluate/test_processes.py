"""Two processes share the scoring and agree to the last bit; one process finds the same."""

import json
import os
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.multiprocess


def run(processes: int, local: int) -> list[dict]:
    """What each process found, with ``local`` devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(processes), str(local), str(port)]
    command = [sys.executable, __file__]
    started = [
        subprocess.Popen([*command, str(rank), *words], stdout=subprocess.PIPE, text=True)
        for rank in range(processes)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes
    return [json.loads(text.strip().splitlines()[-1]) for text in said]


def test_two_processes_find_what_one_finds():
    (alone,) = run(1, 4)
    first, second = run(2, 2)
    assert first["figures"] == second["figures"] == pytest.approx(alone["figures"], rel=1e-12)
    assert sum(first["shares"] + second["shares"]) == alone["tokens"]
    assert min(first["shares"] + second["shares"]) > 0


def main(rank: int, processes: int, local: int, port: int) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={local}"
    import jax

    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, rank)
    import numpy as np

    from lm.evaluate import perplexity
    from lm.evaluate.evaluator import Context
    from lm.evaluate.perplexity import Scorer, figures
    from lm.layers.execution import Execution
    from lm.models.llama import llama_tiny
    from lm.parallel.mesh import Mesh, Parallel
    from lm.train.placed import place_model

    parallel = Parallel(mesh=Mesh(data=2, fsdp=2))
    placed = place_model(llama_tiny(320), Execution(), parallel, jax.devices())
    where = jax.tree.map(lambda x: x.sharding, placed.params)
    params = jax.jit(placed.model.init, out_shardings=where)(jax.random.key(0))
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 320, n) for n in rng.integers(2, 60, 40)]
    shares: list[int] = []
    exchange = perplexity._over_processes

    def record(total: np.ndarray) -> np.ndarray:
        shares.append(int(total[2]))
        return exchange(total)

    perplexity._over_processes = record
    sums = Scorer(Context(placed, None, 8, 16))(params, documents)
    assert sums.tokens == sum(d.size - 1 for d in documents)
    found = {"figures": figures(sums, 100), "shares": shares, "tokens": sums.tokens}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]))
