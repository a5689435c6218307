"""``lm inspect``: what a config, a run or a checkpoint is."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from lm import assemble
from lm.checkpoint.layout import is_whole, load_json, newest, steps
from lm.checkpoint.restore import verify
from lm.cli.output import people, write_json
from lm.config import from_plain, to_plain
from lm.errors import CheckpointError
from lm.experiment import Experiment
from lm.parallel.mesh import describe, one_device
from lm.parallel.shardings import dotted
from lm.track.format import count
from lm.train.memory import bytes_on_device
from lm.train.program import Program, parameter_count


def run(arguments: argparse.Namespace) -> int:
    """Show; returns the exit code: 2 where a checkpoint does not verify."""
    path = Path(arguments.thing)
    with people(arguments.json):
        if path.is_dir():
            figures = _folder(path, verified=arguments.verify)
        else:
            if arguments.verify:
                raise CheckpointError(
                    f"{path}: --verify reads a checkpoint, and this is a config. Leave it out."
                )
            figures = _config(arguments.experiment, arguments.program)
    write_json(arguments.json, figures)
    return 0


def _config(experiment: Experiment, program: Program) -> dict[str, Any]:
    print(f"config     {experiment.name}")
    figures = {"experiment": to_plain(experiment), **_sizes(experiment, program)}
    _show_settings(experiment)
    return figures


def _folder(path: Path, *, verified: bool) -> dict[str, Any]:
    step = newest(path)
    experiment = from_plain(Experiment, load_json(step, "experiment.json"), str(step))
    record = load_json(step, "record.json")
    kind = "checkpoint" if is_whole(path) else "run"
    print(f"{kind:<10} {path}")
    figures: dict[str, Any] = {"checkpoint": str(step), "record": record}
    if kind == "run":
        made = [int(s.name) for s in steps(path)]
        print(f"steps      {', '.join(f'{s:,}' for s in made)} (whole checkpoints)")
        figures["steps"] = made
    print(
        f"made       {record.get('time')} on {record.get('devices')}, step {record.get('step'):,}, "
        f"{count(record.get('tokens', 0))} tokens, commit {record.get('commit') or 'unknown'}"
    )
    versions = record.get("versions", {})
    print(f"versions   {', '.join(f'{name} {v}' for name, v in versions.items())}")
    data = load_json(step, "data.json")
    print(f"data       {data.get('position'):,} sequences consumed")
    # Whatever mesh made it need not be here: as it stands on one device.
    alone = replace(experiment, parallel=one_device(experiment.parallel))
    program = assemble.program(alone, jax.devices()[:1])
    figures |= {"data": data, "experiment": to_plain(experiment), **_sizes(experiment, program)}
    _show_settings(experiment)
    if verified:
        wrong = verify(step)
        if wrong:
            raise CheckpointError(
                f"{step}: not what was saved: {'; '.join(wrong)}. Use another step, or copy it "
                "again."
            )
        print("verified   every leaf and file is what was saved")
        figures["verified"] = True
    return figures


def _sizes(experiment: Experiment, program: Program) -> dict[str, Any]:
    """Print the table of parameters and what they weigh; returns the figures."""
    print(f"mesh       {describe(program.placed.mesh)}")
    rows: list[tuple[str, str, str, int]] = []
    leaves = jax.tree_util.tree_leaves_with_path(program.state.trainable)
    for path, leaf in leaves:
        rows.append((dotted(path), str(leaf.shape), str(leaf.sharding.spec), leaf.size))
    widths = [max(len(str(row[i])) for row in rows) for i in range(3)]
    print(f"\n{'parameter':<{widths[0]}}  {'shape':<{widths[1]}}  {'split':<{widths[2]}}  numbers")
    for name, shape, split, size in rows:
        split = split.replace("PartitionSpec", "")
        print(f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {split:<{widths[2]}}  {size:,}")
    total = parameter_count(program)
    flops = assemble.flops_per_token(experiment, program.placed)
    parts = {
        "parameters": sum(map(bytes_on_device, jax.tree.leaves(program.state.trainable))),
        "optimizer": sum(map(bytes_on_device, jax.tree.leaves(program.state.optimizer))),
    }
    print(f"\ntotal      {total:,} parameters ({count(total)})")
    told = ", ".join(f"{name} {size / 2**30:.3f} GiB" for name, size in parts.items())
    print(f"memory     {told} a device, before activations and gradients")
    print(
        f"flops      {count(flops.causal)} a token in training counting causal attention, "
        f"{count(flops.full)} counting full attention"
    )
    return {
        "parameters": total,
        "leaves": [dict(zip(("name", "shape", "split", "size"), row, strict=True)) for row in rows],
        "gib_per_device": {name: size / 2**30 for name, size in parts.items()},
        "flops_per_token": flops._asdict(),
    }


def _show_settings(experiment: Experiment) -> None:
    print("\nsettings")
    for name, value in sorted(_flat(to_plain(experiment), "").items()):
        print(f"  {name:<44} {value}")


def _flat(plain: Any, path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if isinstance(plain, dict):
        for name, value in plain.items():
            if name != "kind":
                found |= _flat(value, f"{path}.{name}" if path else name)
    elif isinstance(plain, list) and any(isinstance(x, dict) for x in plain):
        for i, value in enumerate(plain):
            found |= _flat(value, f"{path}.{i}")
    else:
        found[path] = plain
    return found
