"""A pod of TPU VMs: queued resources, every worker, and again after a preemption.

What is made is one script of bash with the verbs ``up`` (everything, until the run is finished),
``logs``, ``status``, ``stop`` (save, then end) and ``delete``.  It needs gcloud and nothing of this
package, so that it can run in a cloud shell or on a small machine that is never preempted.
"""

import shlex
from dataclasses import dataclass

from launch import tpus
from launch.job import (
    MISTAKE,
    UNFINISHED,
    Command,
    Job,
    LaunchError,
    check_label,
    check_positive,
)

VERBS = ("up", "logs", "status", "stop", "delete")

# The TPU images bring Python 3.10; uv brings a newer one without touching it.
INSTALL = (
    "python3 -m pip install --user --quiet uv && "
    "~/.local/bin/uv venv --quiet --allow-existing --python 3.12 .venv && "
    "~/.local/bin/uv pip install --quiet --python .venv/bin/python "
    "--constraint constraints.txt --editable '.[tpu]'"
)


@dataclass(frozen=True, kw_only=True)
class TpuVm:
    """Where a job runs.

    ``slices`` slices of ``type`` in ``zone``.  The files that git knows or does not ignore in
    ``source`` are copied to ``~/NAME/code`` of every worker, where ``install`` (a line of shell)
    and the command run.  Checkpoints belong on storage that outlives the pod: ``bucket`` is mounted
    at ``~/NAME/bucket`` of every worker, and ``runs`` beside the code is a link to it.
    """

    job: Job
    type: str
    zone: str
    slices: int = 1
    project: str | None = None
    runtime: str | None = None
    spot: bool = False
    reserved: bool = False
    network: str | None = None
    subnetwork: str | None = None
    service_account: str | None = None
    internal_ip: bool = False
    bucket: str | None = None
    source: str = "."
    install: str = INSTALL
    silence: int = 20
    failures: int = 3

    def __post_init__(self) -> None:
        check_positive(slices=self.slices, silence=self.silence, failures=self.failures)
        check_label(self.job.name, 55, "Cloud TPU")
        tpus.find(self.type)
        if self.spot and self.reserved:
            raise LaunchError("--spot and --reserved exclude each other.")
        if not self.zone:
            raise LaunchError("--zone is empty; write the zone of the quota, as us-west4-a.")

    def commands(self, verb: str = "up") -> list[Command]:
        """One: the script with this verb."""
        if verb not in VERBS:
            raise LaunchError(f"--do {verb}: the verbs are {', '.join(VERBS)}.")
        told = f"{verb}: {self.job.name} on {self.slices} x {tpus.find(self.type).type}"
        if verb == "up":
            told += (
                "; until the run is finished, and again after every preemption\n"
                "The other verbs, in place of up: logs, status, stop (save, then end), delete"
            )
        return [Command(("bash", "-s", "--", verb), told, self.script())]

    def script(self) -> str:
        """The script, whatever its verb."""
        shape = tpus.find(self.type)
        where = [f"--zone={self.zone}"]
        where += [] if self.project is None else [f"--project={self.project}"]
        ssh = ["--internal-ip"] if self.internal_ip else []
        values = {
            "NAME": self.job.name,
            "SOURCE": self.source,
            "FAILURES": str(self.failures),
        }
        given = [f"readonly {name}={shlex.quote(value)}" for name, value in values.items()]
        given.append(f"readonly WHERE=({shlex.join(where)})")
        given.append(f"readonly SSH=({shlex.join(ssh)})")
        given.append(f"readonly CREATE=({shlex.join(self._create(shape))})")
        worker = self._worker()
        end = "WORKER"
        while end in worker.splitlines():
            end += "_"
        return (
            _SCRIPT.replace("@GIVEN@", "\n".join(given))
            .replace("@END@", end)
            .replace("@MISTAKE@", str(MISTAKE))
            .replace("@UNFINISHED@", str(UNFINISHED))
            .replace("@WORKER@", worker)
        )

    def _create(self, shape: tpus.Slice) -> list[str]:
        words = [f"--accelerator-type={shape.type}"]
        words.append(f"--runtime-version={self.runtime or shape.kind.runtime}")
        if self.slices == 1:
            words.append(f"--node-id={self.job.name}")
        else:
            words += [f"--node-count={self.slices}", f"--node-prefix={self.job.name}"]
        words += ["--spot"] if self.spot else []
        words += ["--reserved"] if self.reserved else []
        words += ["--internal-ips"] if self.internal_ip else []
        for name, value in (
            ("network", self.network),
            ("subnetwork", self.subnetwork),
            ("service-account", self.service_account),
        ):
            words += [] if value is None else [f"--{name}={value}"]
        return words

    def _worker(self) -> str:
        exports = [f"export {name}={shlex.quote(value)}" for name, value in self.job.environment]
        return (
            _WORKER.replace("@NAME@", shlex.quote(self.job.name))
            .replace("@BUCKET@", shlex.quote(self.bucket or ""))
            .replace("@INSTALL@", self.install)
            .replace("@SILENCE@", str(self.silence))
            .replace("@UNFINISHED@", str(UNFINISHED))
            .replace("@EXPORTS@", "\n".join(["# The environment of the run.", *exports]))
            .replace("@COMMAND@", shlex.join(self.job.command))
        )


_SCRIPT = """\
#!/usr/bin/env bash
# Keeps a run going on TPU VMs; made by launch.  Verbs: up, logs, status, stop, delete.
set -uo pipefail

@GIVEN@

queued() {
  gcloud compute tpus queued-resources "$@" "${WHERE[@]}" --quiet
}

everywhere() {
  queued ssh "$NAME" --node=all --worker=all "${SSH[@]}" --command="$1"
}

say() {
  echo "launch: $*" >&2
}

state() {
  local told
  if told=$(queued describe "$NAME" --format='value(state.state)' 2>&1); then
    echo "$told"
  elif grep -q NOT_FOUND <<<"$told"; then
    echo ABSENT
  else
    echo UNKNOWN
    say "gcloud: $(tail -n 1 <<<"$told")"
  fi
}

# Waits until the slices are there, and asks for them anew when they were lost.
ready() {
  local now before="" refused=0
  while :; do
    now=$(state)
    if [ "$now" != "$before" ]; then
      say "the queued resource is $now"
      before=$now
    fi
    case $now in
    ACTIVE) return ;;
    ABSENT)
      if ! queued create "$NAME" "${CREATE[@]}"; then
        refused=$((refused + 1))
        if [ "$refused" -ge 3 ]; then
          say "asked three times for slices and was refused; what gcloud said is above"
          exit 1
        fi
      fi
      ;;
    SUSPENDED | FAILED | PREEMPTED) queued delete "$NAME" --force || true ;;
    esac
    sleep "${LAUNCH_POLL:-20}"
  done
}

worker_script() {
  cat <<'@END@'
@WORKER@
@END@
}

# Copies the code and the worker's script everywhere, and installs.
install() {
  local folder done=1
  folder=$(mktemp -d) || return 1
  worker_script >"$folder/worker.sh"
  if (
    set -e
    cd "$SOURCE"
    git ls-files --cached --others --exclude-standard -z |
      while IFS= read -r -d '' file; do
        if [ -e "$file" ]; then printf '%s\\0' "$file"; fi
      done |
      tar --create --gzip --null --files-from=- --file="$folder/code.tar.gz"
  ) && everywhere "mkdir -p $NAME" &&
    queued scp "$folder/worker.sh" "$folder/code.tar.gz" "$NAME:$NAME/" \\
      --node=all --worker=all "${SSH[@]}" &&
    everywhere "bash $NAME/worker.sh install"; then
    done=0
  fi
  rm -rf "$folder"
  return "$done"
}

# What the workers say: absent, running, stopped or an exit code, the gravest of them; or gone.
status() {
  local told word
  told=$(everywhere "bash $NAME/worker.sh status 2>/dev/null || echo launch-status=absent") ||
    { echo gone; return; }
  told=$(grep -o 'launch-status=[a-z0-9]*' <<<"$told" | cut -d= -f2 | sort -u)
  for word in @MISTAKE@ stopped absent; do
    if grep -qx "$word" <<<"$told"; then echo "$word"; return; fi
  done
  # One that failed is started again beside those that still run, and joins them.
  grep -vxE '0|running' <<<"$told" | head -n 1 | grep . && return
  if grep -qx running <<<"$told"; then echo running; else echo "${told:-gone}"; fi
}

# Follows the first worker until it ends, or cannot be reached.
follow() {
  exec gcloud compute tpus queued-resources ssh "$NAME" "${WHERE[@]}" --quiet --node=0 --worker=0 \\
    "${SSH[@]}" --command="bash $NAME/worker.sh logs"
}

# In a process group of its own, so that ssh goes with gcloud.
following=""
follow_beside() {
  set -m
  follow &
  following=$!
  set +m
}

unfollow() {
  if [ -n "$following" ]; then
    kill -- "-$following" 2>/dev/null
    wait "$following" 2>/dev/null
  fi
  following=""
}

up() {
  local code failed=0 fresh=yes
  trap unfollow EXIT
  while :; do
    ready
    code=$(status)
    # A machine that has just been made may not answer yet.
    if [ "$code" = gone ]; then
      sleep "${LAUNCH_POLL:-20}"
      continue
    fi
    # The code of today, unless it runs already; and whatever new machines lack.
    if [ "$code" = absent ] || { [ -n "$fresh" ] && [ "$code" != running ]; }; then
      say "installing on every worker"
      if ! install; then
        failed=$((failed + 1))
        say "the installation failed; see above"
        if [ "$failed" -ge "$FAILURES" ]; then return 1; fi
        sleep "${LAUNCH_POLL:-20}"
        continue
      fi
    fi
    fresh=""
    if [ "$code" != running ]; then
      say "starting on every worker"
      everywhere "bash $NAME/worker.sh start" || true
    fi
    follow_beside
    while :; do
      sleep "${LAUNCH_POLL:-20}"
      code=$(status)
      case $code in
      running)
        kill -0 "$following" 2>/dev/null || follow_beside
        continue
        ;;
      gone)
        case $(state) in ACTIVE | UNKNOWN) continue ;; esac
        say "the slices were lost; asking for new ones"
        ;;
      0) say "finished; the slices still cost money until: delete"; return 0 ;;
      @MISTAKE@) say "exit code @MISTAKE@ is a mistake that only you can mend"; return @MISTAKE@ ;;
      stopped) say "stopped as asked"; return 0 ;;
      @UNFINISHED@) say "it was stopped before its end; going on"; failed=0 ;;
      *)
        failed=$((failed + 1))
        say "it failed with exit code $code"
        if [ "$failed" -ge "$FAILURES" ]; then
          say "giving up after $failed failures in a row"
          return 1
        fi
        ;;
      esac
      break
    done
    unfollow
  done
}

main() {
  case ${1:-up} in
  up) up ;;
  logs) follow ;;
  status) state && everywhere "bash $NAME/worker.sh status" ;;
  stop) everywhere "bash $NAME/worker.sh stop" ;;
  delete) queued delete "$NAME" --force ;;
  *) say "the verbs are up, logs, status, stop, delete"; return 2 ;;
  esac
}

# gcloud's ssh would read the rest of a script that comes by standard input.
main "$@" </dev/null
exit
"""

_WORKER = """\
#!/usr/bin/env bash
# One worker of a pod; made by launch.  Verbs: install, start, run, status, logs, stop.
set -uo pipefail
name=@NAME@
bucket=@BUCKET@
here="$HOME/$name"
unit="launch-$name"
cd "$here" || exit 1

metadata() {
  curl --silent --fail --retry 5 -H 'Metadata-Flavor: Google' \\
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

# A value of tpu-env, whose lines are KEY: 'value'.
tpu_env() {
  metadata tpu-env | sed -n "s/^$1: *'\\\\{0,1\\\\}\\\\([^']*\\\\)'\\\\{0,1\\\\}$/\\\\1/p"
}

install() {
  set -e
  rm -rf code.new
  mkdir code.new
  tar -xzf code.tar.gz -C code.new
  if [ -d code/.venv ]; then mv code/.venv code.new/; fi
  rm -rf code
  mv code.new code
  if [ -n "$bucket" ]; then
    if ! command -v gcsfuse >/dev/null; then
      echo "deb https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
      curl --silent --fail https://packages.cloud.google.com/apt/doc/apt-key.gpg |
        sudo tee /etc/apt/trusted.gpg.d/gcsfuse.asc >/dev/null
      sudo apt-get update -qq
      sudo apt-get install -y -qq gcsfuse
    fi
    mkdir -p bucket
    mountpoint -q bucket || gcsfuse --implicit-dirs "$bucket" bucket
    mkdir -p bucket/runs
    ln -sfn "$here/bucket/runs" code/runs
  fi
  cd code
  @INSTALL@
}

# A unit of systemd outlives the ssh session, and stops with one signal to the supervisor alone.
start() {
  if systemctl is-active --quiet "$unit"; then return; fi
  rm -f code-of-end stopped
  sudo systemctl reset-failed "$unit" 2>/dev/null
  sudo systemd-run --quiet --unit="$unit" --uid="$(id -u)" --gid="$(id -g)" \\
    --setenv=HOME="$HOME" --property=KillMode=mixed --property=TimeoutStopSec=300 \\
    --property=LimitMEMLOCK=infinity --property=StandardOutput="append:$here/log" \\
    --property=StandardError="append:$here/log" /bin/bash "$here/worker.sh" run
}

run() {
  local workers count rank slice slices coordinator
  workers=$(metadata worker-network-endpoints) || exit 1
  # Hosts' names, or triples whose third part is the address.
  workers=$(tr ',' '\\n' <<<"$workers" | awk -F: '{ print (NF == 3) ? $3 : $1 }')
  count=$(wc -l <<<"$workers")
  rank=$(metadata agent-worker-number) || exit 1
  slice=$(tpu_env MEGASCALE_SLICE_ID)
  slices=$(tpu_env MEGASCALE_NUM_SLICES)
  coordinator=$(tpu_env MEGASCALE_COORDINATOR_ADDRESS)
  coordinator=${coordinator:-$(head -n 1 <<<"$workers")}
  export JAX_COORDINATOR_ADDRESS="${coordinator%%:*}:8482"
  export JAX_NUM_PROCESSES=$((count * ${slices:-1}))
  export JAX_PROCESS_ID=$((rank + count * ${slice:-0}))
  cd code || exit 1
  if [ -d .venv ]; then export PATH="$PWD/.venv/bin:$PATH"; fi
  @EXPORTS@
  local child code
  trap 'kill -TERM "$child"' TERM
  python3 -m launch local --stopped-code @UNFINISHED@ --silence @SILENCE@ --logs "$here/logs" -- \\
    @COMMAND@ &
  child=$!
  while kill -0 "$child" 2>/dev/null; do
    wait "$child"
  done
  wait "$child"
  code=$?
  echo "$code" >"$here/code-of-end"
}

status() {
  local now
  if systemctl is-active --quiet "$unit"; then
    now=running
  elif [ -e stopped ]; then
    now=stopped
  elif [ -e code-of-end ]; then
    now=$(cat code-of-end)
  elif [ -e log ]; then
    now=1
  else
    now=absent
  fi
  echo "launch-status=$now"
}

logs() {
  touch log
  exec tail -n 50 -F log
}

stop() {
  touch stopped
  sudo systemctl stop "$unit"
}

"$1"
"""
