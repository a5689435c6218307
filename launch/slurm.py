"""A batch job on a SLURM cluster, which goes on until it is finished.

The job is queued again when its time is up, when a node fails and when it is preempted, but neither
when it is finished, nor after a mistake of the user (exit code 2), nor after several failures in a
row.  Every task is watched by ``launch local``, so that a frozen one ends the step.
"""

import re
import shlex
from dataclasses import dataclass

from launch.job import MISTAKE, UNFINISHED, Command, Job, LaunchError, check_positive

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TIME = re.compile(r"(\d+-)?\d+(:\d\d){0,2}")


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """Where a job runs.

    JAX wants one task for each GPU; ``gpus_per_node`` therefore sets the tasks too.  ``time`` is
    SLURM's own time limit, ``notice`` the seconds before it at which the run is asked to save and
    stop.  ``setup`` are lines of shell that make the program found (modules, an environment), and
    ``options`` further words for sbatch.
    """

    job: Job
    nodes: int = 1
    gpus_per_node: int | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    time: str | None = None
    notice: int = 300
    stop_after: str | None = None
    partition: str | None = None
    account: str | None = None
    failures: int = 3
    python: str = "python3"
    setup: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_positive(
            nodes=self.nodes,
            gpus_per_node=self.gpus_per_node,
            tasks_per_node=self.tasks_per_node,
            cpus_per_task=self.cpus_per_task,
            notice=self.notice,
            failures=self.failures,
        )
        if not _NAME.fullmatch(self.job.name):
            raise LaunchError(
                f"--name {self.job.name}: use letters, digits, dots, dashes and underscores; it "
                "names files too."
            )
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise LaunchError(
                f"--time {self.time}: write it as SLURM does: minutes, hours:minutes:seconds, or "
                "days-hours:minutes:seconds, as in 3:50:00."
            )
        for option in (self.partition, self.account, *self.options):
            if option is not None and (not option or "\n" in option):
                raise LaunchError(f"{option!r} cannot stand in a line of a batch script.")

    def commands(self) -> list[Command]:
        """One: hand the batch script in."""
        return [
            Command(
                ("sbatch",),
                f"hand in {self.job.name}; follow it with: tail -F {self.job.name}-JOBID.out, "
                "end it with: scancel JOBID",
                self.script(),
            )
        ]

    def script(self) -> str:
        """The batch script."""
        lines = ["#!/bin/bash", *(f"#SBATCH {line}" for line in self._directives()), _HEAD]
        lines += ["# The environment of every task.", *self.setup]
        lines += [f"export {name}={shlex.quote(value)}" for name, value in self.job.environment]
        command = list(self.job.command)
        if self.stop_after is not None:
            command += ["--stop-after", self.stop_after]
        lines += [
            _BODY.replace("COMMAND", shlex.join(command))
            .replace("PYTHON", shlex.quote(self.python))
            .replace("FAILURES", str(self.failures))
            .replace("MISTAKE", str(MISTAKE))
            .replace("UNFINISHED", str(UNFINISHED))
        ]
        return "\n".join(lines)

    def _directives(self) -> list[str]:
        tasks = self.tasks_per_node or self.gpus_per_node or 1
        given = {
            "job-name": self.job.name,
            "nodes": self.nodes,
            "ntasks-per-node": tasks,
            "gpus-per-node": self.gpus_per_node,
            "cpus-per-task": self.cpus_per_task,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "output": "%x-%j.out",
            "open-mode": "append",
            # To the batch shell alone, which passes it on: the step would be ended by it.
            "signal": f"B:USR1@{self.notice}",
        }
        told = [f"--{name}={value}" for name, value in given.items() if value is not None]
        return [*told, "--requeue", *self.options]


_HEAD = """
set -uo pipefail
"""

# srun's exit code is the highest of its tasks', in which a mistake can hide: 143 is above 2.
# SLURM signals every process of a step, so the supervisor does not pass a signal on; the notice
# that the time is up goes through a file.
_BODY = """
state="launch-state/$SLURM_JOB_ID"
mkdir -p "$state" || exit 1
rm -f "$state/stop" "$state/mistake" "$state/unfinished"
export LAUNCH_STATE="$PWD/$state"
# shellcheck disable=SC2016  # the task expands it
task='
trap : TERM
"$@" && exit 0
code=$?
if [ "$code" = MISTAKE ]; then touch "$LAUNCH_STATE/mistake"; fi
if [ "$code" = UNFINISHED ]; then touch "$LAUNCH_STATE/unfinished"; fi
exit "$code"
'

again() {
  # A job that was cancelled stays so, and one that was preempted SLURM queues by itself.
  if scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING; then
    echo "launch: queueing job $SLURM_JOB_ID again: $1"
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$2"
}

trap 'touch "$LAUNCH_STATE/stop"' USR1
trap : TERM
srun --kill-on-bad-exit=1 bash -c "$task" task \\
  PYTHON -m launch local --attempts 1 --no-pass-on --stop-file "$LAUNCH_STATE/stop" \\
  --stopped-code UNFINISHED --logs "$state/logs" -- \\
  COMMAND &
step=$!
# A signal ends a wait before the step has ended.
while kill -0 "$step" 2>/dev/null; do
  wait "$step"
done
wait "$step"
code=$?

if [ -e "$state/mistake" ]; then
  echo "launch: exit code MISTAKE is a mistake that only you can mend; not queued again."
  exit MISTAKE
fi
if [ "$code" = 0 ]; then
  exit 0
fi
if [ -e "$state/unfinished" ]; then
  rm -f "$state/failures"
  again "it was stopped before its end" "$code"
fi
echo "$code" >>"$state/failures"
failed=$(wc -l <"$state/failures")
if [ "$failed" -ge FAILURES ]; then
  echo "launch: it failed $failed times in a row, at last with exit code $code; not queued again."
  exit "$code"
fi
again "it failed with exit code $code" "$code"
"""
