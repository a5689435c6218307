"""Start a run: here, on a SLURM cluster, on a TPU VM pod, or on Kubernetes.

    python -m launch local --processes 4 -- lm train my_config.py
    python -m launch tpu-vm --name llama --type v5e-64 --zone us-west4-a -- lm train my_config.py

``local`` starts at once and keeps the run going.  The others print what would be run, as shell that
can be copied; ``--go`` runs it.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from launch.attempt import Watch
from launch.gke import Gke
from launch.job import Command, Job, LaunchError, duration, run
from launch.local import Local
from launch.slurm import Slurm
from launch.tpu_vm import VERBS, TpuVm


class _Parser(argparse.ArgumentParser):
    """Raises on a mistake instead of printing the usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise LaunchError(f"{message}. {self.prog} --help lists the options.")


def main(argv: Sequence[str] | None = None) -> int:
    """Launch; returns the exit code, 2 where the words make no sense."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        own, command = _split(words)
        arguments = _parser().parse_args(own)
        return arguments.run(arguments, command)
    except LaunchError as error:
        print(f"launch: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0


def _split(words: list[str]) -> tuple[list[str], tuple[str, ...]]:
    if "--" not in words:
        return words, ()
    at = words.index("--")
    return words[:at], tuple(words[at + 1 :])


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="launcher", required=True, metavar="LAUNCHER")
    _add_local(verbs.add_parser)
    _add_slurm(verbs.add_parser)
    _add_tpu_vm(verbs.add_parser)
    _add_gke(verbs.add_parser)
    return parser


Adder = Callable[..., argparse.ArgumentParser]
Runner = Callable[[argparse.Namespace, tuple[str, ...]], int]


def _add(add_parser: Adder, name: str, text: str, runner: Runner) -> argparse.ArgumentParser:
    parser = add_parser(
        name, help=text, description=text, allow_abbrev=False, usage=f"{name} [options] -- COMMAND"
    )
    parser.set_defaults(run=runner)
    parser.add_argument(
        "--env",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a variable of the command's environment; may be repeated",
    )
    return parser


def _job(arguments: argparse.Namespace, command: tuple[str, ...]) -> Job:
    pairs: list[tuple[str, str]] = []
    for given in arguments.env:
        name, sign, value = str(given).partition("=")
        if not sign:
            raise LaunchError(f"--env {given}: write NAME=VALUE.")
        pairs.append((name, value))
    return Job(name=arguments.name, command=command, environment=tuple(pairs))


def _seconds(text: str) -> float:
    try:
        return duration(text)
    except LaunchError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _show_or_run(commands: list[Command], *, go: bool) -> int:
    if go:
        return run(commands)
    print("\n".join(command.text() for command in commands), end="")
    return 0


def _add_local(add_parser: Adder) -> None:
    parser = _add(add_parser, "local", "run here, watched and restarted", _local)
    add = parser.add_argument
    add("--processes", type=int, default=1, help="how many (1)")
    add("--devices-per-process", type=int, help="virtual CPU devices of each")
    add("--gpus-per-process", type=int, help="GPUs of each, in order")
    add("--attempts", type=int, help="the most attempts in all (no bound)")
    add("--give-up", type=int, default=3, help="failures in a row at one step that end it (3)")
    add("--back-off", type=_seconds, default=5, help="pause before the second attempt (5s)")
    add("--longest-back-off", type=_seconds, default=300, help="longest pause (5m)")
    add("--silence", type=_seconds, default=20, help="age of a heartbeat that means frozen (20s)")
    add("--start", type=_seconds, default=120, help="time for the first heartbeat (2m)")
    add("--grace", type=_seconds, default=5, help="from SIGTERM to SIGKILL in a failure (5s)")
    add("--logs", type=Path, help="folder for the output of every process (logs)")
    add("--all", action="store_true", help="show the output of every process, not only of 0")
    add("--stopped-code", type=int, default=0, help="exit code of a run stopped as asked (0)")
    add("--stop-file", type=Path, help="a file that asks to stop, once it is there")
    add(
        "--no-pass-on",
        action="store_true",
        help="who signals this supervisor signals the processes too (SLURM)",
    )
    add("--dry-run", action="store_true", help="print the commands and start nothing")
    parser.set_defaults(name="run")


def _local(arguments: argparse.Namespace, command: tuple[str, ...]) -> int:
    local = Local(
        job=_job(arguments, command),
        processes=arguments.processes,
        devices_per_process=arguments.devices_per_process,
        gpus_per_process=arguments.gpus_per_process,
        attempts=arguments.attempts,
        give_up=arguments.give_up,
        back_off=arguments.back_off,
        longest_back_off=arguments.longest_back_off,
        watch=Watch(
            silence=arguments.silence,
            start=arguments.start,
            grace=arguments.grace,
            show_all=arguments.all,
            stop_file=arguments.stop_file,
            pass_on=not arguments.no_pass_on,
        ),
        logs=arguments.logs,
        stopped_code=arguments.stopped_code,
    )
    if arguments.dry_run:
        return _show_or_run(local.commands(), go=False)
    return local.supervise()


def _add_cluster(
    add_parser: Adder, name: str, text: str, runner: Runner
) -> argparse.ArgumentParser:
    parser = _add(add_parser, name, text, runner)
    parser.add_argument("--name", required=True, help="of the job, and what is made for it")
    parser.add_argument("--go", action="store_true", help="run the commands, not only print them")
    return parser


def _options(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """What was given of these; the rest is left to the launcher's own defaults."""
    given = {name: getattr(arguments, name) for name in names}
    return {
        name: value for name, value in given.items() if value is not None and value is not False
    }


def _add_slurm(add_parser: Adder) -> None:
    parser = _add_cluster(add_parser, "slurm", "a batch job that queues itself again", _slurm)
    add = parser.add_argument
    add("--nodes", type=int, help="how many (1)")
    add("--gpus-per-node", type=int, help="and so many tasks on each, which is what JAX wants")
    add("--tasks-per-node", type=int, help="where that is not one for each GPU")
    add("--cpus-per-task", type=int)
    add("--time", help="the time limit, as SLURM writes it: 3:50:00")
    add("--notice", type=int, help="seconds before the limit at which the run saves (300)")
    add("--stop-after", help="passed on to the command, as 3h50m")
    add("--partition")
    add("--account")
    add("--failures", type=int, help="failures in a row after which it stays ended (3)")
    add("--python", help="the Python that has this package (python3)")
    add("--setup", action="append", help="a line of shell before the command; may be repeated")
    add("--sbatch", action="append", help="a further word for sbatch; may be repeated")


def _slurm(arguments: argparse.Namespace, command: tuple[str, ...]) -> int:
    names = ("nodes", "gpus_per_node", "tasks_per_node", "cpus_per_task", "time", "notice")
    names += ("stop_after", "partition", "account", "failures", "python")
    slurm = Slurm(
        job=_job(arguments, command),
        setup=tuple(arguments.setup or ()),
        options=tuple(arguments.sbatch or ()),
        **_options(arguments, *names),
    )
    return _show_or_run(slurm.commands(), go=arguments.go)


def _add_tpu_vm(add_parser: Adder) -> None:
    parser = _add_cluster(add_parser, "tpu-vm", "TPU VMs by queued resources", _tpu_vm)
    add = parser.add_argument
    add("--type", required=True, help="a slice, as v5e-64, v5p-128 or v6e-256")
    add("--zone", required=True)
    add("--do", default="up", help=f"one of {', '.join(VERBS)} (up)")
    add("--slices", type=int, help="how many, joined by the data-centre network (1)")
    add("--project", help="gcloud's own, where it is not given")
    add("--runtime", help="the image of the machines (the one that fits the type)")
    add("--spot", action="store_true", help="cheaper, and preempted")
    add("--reserved", action="store_true", help="out of a reservation")
    add("--network")
    add("--subnetwork")
    add("--service-account")
    add("--internal-ip", action="store_true", help="machines without addresses of the internet")
    add("--bucket", help="of Cloud Storage, for runs; mounted on every worker")
    add("--source", help="the folder whose files are copied to every worker (.)")
    add("--install", help="shell that installs there (uv, Python 3.12, and lm with its tpu extra)")
    add("--silence", type=int, help="seconds without a heartbeat that mean frozen (20)")
    add("--failures", type=int, help="failures in a row after which it is given up (3)")


def _tpu_vm(arguments: argparse.Namespace, command: tuple[str, ...]) -> int:
    names = ("slices", "project", "runtime", "spot", "reserved", "network", "subnetwork")
    names += ("service_account", "internal_ip", "bucket", "source", "install", "silence")
    tpu_vm = TpuVm(
        job=_job(arguments, command),
        type=arguments.type,
        zone=arguments.zone,
        **_options(arguments, *names, "failures"),
    )
    return _show_or_run(tpu_vm.commands(arguments.do), go=arguments.go)


def _add_gke(add_parser: Adder) -> None:
    parser = _add_cluster(add_parser, "gke", "a JobSet on Kubernetes, of TPU or GPU nodes", _gke)
    add = parser.add_argument
    add("--image", required=True, help="the container image that has lm, this package and configs")
    add("--type", help="a TPU slice, as v5e-64, v5p-128 or v6e-256")
    add("--slices", type=int, help="how many, joined by the data-centre network (1)")
    add("--chips-per-host", type=int, help="where node pools differ from the usual 4 (or 8)")
    add("--gpus", type=int, help="of each node, in place of --type")
    add("--gpu-type", help="what GKE calls them, as nvidia-h100-80gb")
    add("--nodes", type=int, help="with GPUs (1)")
    add("--spot", action="store_true", help="cheaper nodes, which are preempted")
    add("--volume-size", help="of a new volume for runs, as 1Ti")
    add("--storage-class", help="of the new volume; many pods write to it (standard-rwx)")
    add("--claim", help="an existing volume claim for runs")
    add("--bucket", help="of Cloud Storage, for runs")
    add("--mount", help="where runs are seen in the container (/runs)")
    add("--grace", type=int, help="seconds that a pod has for its last save (300)")
    add("--silence", type=int, help="seconds without a heartbeat that mean frozen (20)")
    add("--restarts", type=int, help="the most restarts after failures; preemptions are free (20)")
    add("--namespace", help="of the cluster (default)")
    add("--service-account", help="of the pods; a bucket wants one that may write to it")
    add("--queue", help="of Kueue")


def _gke(arguments: argparse.Namespace, command: tuple[str, ...]) -> int:
    names = ("type", "slices", "chips_per_host", "gpus", "gpu_type", "nodes", "spot", "claim")
    names += ("volume_size", "storage_class", "bucket", "mount", "grace", "silence", "restarts")
    gke = Gke(
        job=_job(arguments, command),
        image=arguments.image,
        **_options(arguments, *names, "namespace", "service_account", "queue"),
    )
    return _show_or_run(gke.commands(), go=arguments.go)


if __name__ == "__main__":
    sys.exit(main())
