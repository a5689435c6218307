"""A JobSet on Google Kubernetes Engine: slices of TPU, or nodes with GPUs.

JobSet (https://jobset.sigs.k8s.io, 0.10 or later) makes one Job of each slice, the headless service
by which the pods find each other, and all of them again when one fails.  A manifest is JSON, which
kubectl reads as it reads YAML.

What a pod's end means:

- 0: finished.
- 2: a mistake of the user; the JobSet fails, and nothing is repeated.
- 75: stopped by SIGTERM and saved, but not finished.  Kubernetes would take a 0 for the end of the
  pod's work, and a whole run could pass for complete; a failure makes the JobSet start it again.
- a pod that was disrupted (preempted, drained) is started again without counting.
"""

import json
from dataclasses import dataclass
from typing import Any

from launch import tpus
from launch.job import MISTAKE, UNFINISHED, Command, Job, LaunchError, check_label, check_positive

_PORT = 8476
_KEYS = "cloud.google.com/"


@dataclass(frozen=True, kw_only=True)
class Gke:
    """Where a job runs and what it keeps.

    Either ``type`` (a TPU slice; ``slices`` of them) or ``gpus`` a node with ``gpu_type``, on
    ``nodes`` nodes.  Checkpoints go to one volume, mounted at ``mount``: an existing ``claim``, a
    new one of ``volume_size``, or a ``bucket`` through Cloud Storage FUSE.  A pod has ``grace``
    seconds for its last save; a heartbeat older than ``silence`` seconds means that it froze.
    """

    job: Job
    image: str
    type: str | None = None
    slices: int = 1
    chips_per_host: int | None = None
    gpus: int | None = None
    gpu_type: str | None = None
    nodes: int = 1
    spot: bool = False
    claim: str | None = None
    volume_size: str | None = None
    storage_class: str = "standard-rwx"
    bucket: str | None = None
    mount: str = "/runs"
    grace: int = 300
    silence: int = 20
    restarts: int = 20
    namespace: str = "default"
    service_account: str | None = None
    queue: str | None = None

    def __post_init__(self) -> None:
        check_positive(
            slices=self.slices,
            chips_per_host=self.chips_per_host,
            gpus=self.gpus,
            nodes=self.nodes,
            grace=self.grace,
            silence=self.silence,
            restarts=self.restarts,
        )
        if (self.type is None) == (self.gpus is None):
            raise LaunchError("say either --type (a TPU slice, as v5e-64) or --gpus (a node).")
        if (self.gpus is None) != (self.gpu_type is None):
            raise LaunchError(
                "--gpus and --gpu-type go together: how many a node has, and what GKE calls them, "
                "as in --gpus 8 --gpu-type nvidia-h100-80gb."
            )
        volumes = [self.claim, self.volume_size, self.bucket]
        if sum(volume is not None for volume in volumes) != 1:
            raise LaunchError(
                "say where checkpoints are kept, since a pod's own disk goes with it: one of "
                "--volume-size 1Ti (a new volume), --claim NAME (one that is there) or --bucket "
                "NAME (Cloud Storage)."
            )
        if self.slices > 1 and (self.type is None or self._pods == 1):
            raise LaunchError(
                f"--slices {self.slices}: several slices are joined only where each has several "
                "hosts; take a larger --type, or --chips-per-host 4 with a node pool of such hosts."
            )
        if not self.mount.startswith("/"):
            raise LaunchError(f"--mount {self.mount}: write an absolute path, as /runs.")
        # The longest name made of it is a pod's: NAME-slice-JOB-POD-abcde.
        rest = len(f"-{self._role}-{self._replicas - 1}-{self._pods - 1}-abcde")
        check_label(self.job.name, 63 - rest, "Kubernetes")
        check_label(self.namespace, 63, "Kubernetes (--namespace)")

    def commands(self) -> list[Command]:
        """One: hand the manifests to the cluster."""
        name, space = self.job.name, self.namespace
        follow = (
            f"start {name}; it wants the JobSet controller in the cluster\n"
            f"follow it with: kubectl -n {space} logs -f -l "
            f"jobset.sigs.k8s.io/jobset-name={name},jobset.sigs.k8s.io/job-index=0,"
            f"batch.kubernetes.io/job-completion-index=0\n"
            f"its state: kubectl -n {space} describe jobset {name}\n"
            f"end it with: kubectl -n {space} delete jobset {name}"
        )
        listed = {"apiVersion": "v1", "kind": "List", "items": self.manifests()}
        text = json.dumps(listed, indent=2, ensure_ascii=False)
        return [Command(("kubectl", "apply", "-f", "-"), follow, text)]

    def manifests(self) -> list[dict[str, Any]]:
        """The volume claim, where a new one is wanted, and the JobSet."""
        return [*([self._new_claim()] if self.volume_size is not None else []), self._jobset()]

    @property
    def _slice(self) -> tpus.Slice | None:
        return None if self.type is None else tpus.find(self.type)

    @property
    def _role(self) -> str:
        return "slice" if self.type is not None else "node"

    @property
    def _replicas(self) -> int:
        return self.slices if self.type is not None else 1

    @property
    def _pods(self) -> int:
        """Pods of one Job."""
        shape = self._slice
        if shape is None:
            return self.nodes
        chips = self._chips
        if shape.chips % chips:
            raise LaunchError(
                f"--chips-per-host {chips} does not divide the {shape.chips} chips of {shape.type}."
            )
        return shape.chips // chips

    @property
    def _chips(self) -> int:
        shape = self._slice
        assert shape is not None
        return self.chips_per_host or shape.chips // shape.hosts

    def _new_claim(self) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": f"{self.job.name}-runs", "namespace": self.namespace},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "storageClassName": self.storage_class,
                "resources": {"requests": {"storage": self.volume_size}},
            },
        }

    def _jobset(self) -> dict[str, Any]:
        annotations: dict[str, str] = {}
        if self.type is not None:
            # One slice's pods on one node pool, which is one slice.
            annotations["alpha.jobset.sigs.k8s.io/exclusive-topology"] = f"{_KEYS}gke-nodepool"
        labels = {} if self.queue is None else {"kueue.x-k8s.io/queue-name": self.queue}
        metadata: dict[str, Any] = {"name": self.job.name, "namespace": self.namespace}
        metadata |= {"annotations": annotations} if annotations else {}
        metadata |= {"labels": labels} if labels else {}
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": metadata,
            "spec": {
                "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
                "failurePolicy": {
                    "maxRestarts": self.restarts,
                    # No pod of the last attempt is left to hold a chip or a checkpoint.
                    "restartStrategy": "BlockingRecreate",
                    "rules": [
                        {
                            "name": "mistake",
                            "action": "FailJobSet",
                            "onJobFailureReasons": ["PodFailurePolicy"],
                            "onJobFailureMessagePatterns": [f".*exit code {MISTAKE} .*"],
                        },
                        {
                            "name": "disrupted",
                            "action": "RestartJobSetAndIgnoreMaxRestarts",
                            "onJobFailureReasons": ["PodFailurePolicy"],
                            "onJobFailureMessagePatterns": [".*DisruptionTarget.*"],
                        },
                    ],
                },
                "replicatedJobs": [
                    {
                        "name": self._role,
                        "replicas": self._replicas,
                        "template": {"spec": self._job_spec()},
                    }
                ],
            },
        }

    def _job_spec(self) -> dict[str, Any]:
        return {
            "completionMode": "Indexed",
            "completions": self._pods,
            "parallelism": self._pods,
            # A pod alone cannot be replaced: the others wait for the one that is gone.
            "backoffLimit": 0,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            "containerName": "train",
                            "operator": "In",
                            "values": [MISTAKE],
                        },
                    },
                    {
                        "action": "FailJob",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    },
                ]
            },
            "template": self._pod(),
        }

    def _pod(self) -> dict[str, Any]:
        selector, tolerations, chips = self._nodes()
        spec: dict[str, Any] = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": self.grace,
            "nodeSelector": selector,
            "tolerations": tolerations,
            "containers": [self._container(chips)],
            "volumes": self._volumes(),
        }
        if self.type is not None:
            # The pods of a slice speak to each other fastest on the nodes' own network.
            spec |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
        if self.service_account is not None:
            spec["serviceAccountName"] = self.service_account
        made: dict[str, Any] = {"spec": spec}
        if self.bucket is not None:
            made["metadata"] = {"annotations": {"gke-gcsfuse/volumes": "true"}}
        return made

    def _nodes(self) -> tuple[dict[str, str], list[dict[str, Any]], dict[str, int]]:
        """Which nodes, what is tolerated there, and what is asked of each."""
        shape = self._slice
        if shape is not None:
            selector = {
                f"{_KEYS}gke-tpu-accelerator": shape.kind.gke,
                f"{_KEYS}gke-tpu-topology": shape.topology,
            }
            resource, count = "google.com/tpu", self._chips
        else:
            assert self.gpu_type is not None
            assert self.gpus is not None
            selector = {f"{_KEYS}gke-accelerator": self.gpu_type}
            resource, count = "nvidia.com/gpu", self.gpus
        tolerations = [{"key": resource, "operator": "Exists", "effect": "NoSchedule"}]
        if self.spot:
            selector[f"{_KEYS}gke-spot"] = "true"
            tolerations.append(
                {
                    "key": f"{_KEYS}gke-spot",
                    "operator": "Equal",
                    "value": "true",
                    "effect": "NoSchedule",
                }
            )
        return selector, tolerations, {resource: count}

    def _container(self, chips: dict[str, int]) -> dict[str, Any]:
        beats = "find /tmp -maxdepth 3 -path '/tmp/launch-*/heartbeats/*.json'"
        supervisor = ["python3", "-m", "launch", "local", "--attempts", "1"]
        supervisor += ["--stopped-code", str(UNFINISHED), "--silence", str(self.silence)]
        supervisor += ["--logs", "/tmp/logs", "--"]
        mounts = [{"name": "runs", "mountPath": self.mount}]
        if self.type is None:
            mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
        return {
            "name": "train",
            "image": self.image,
            "command": [_literal(word) for word in (*supervisor, *self.job.command)],
            "env": self._environment(),
            "resources": {"requests": chips, "limits": chips},
            "volumeMounts": mounts,
            # The heartbeats are where the supervisor keeps them, in /tmp where no TMPDIR is set.
            # Until the first one; an image that is large or a slow import has ten minutes.
            "startupProbe": {
                "exec": {"command": ["sh", "-c", f'test -n "$({beats})"']},
                "periodSeconds": 5,
                "failureThreshold": 120,
            },
            # The supervisor inside ends a frozen run sooner and with its reason; this one ends a
            # pod in which nothing answers.  What is frozen saves nothing: the grace is short.
            "livenessProbe": {
                "exec": {
                    "command": [
                        "sh",
                        "-c",
                        f'test -n "$({beats} -newermt "-{2 * self.silence} seconds")"',
                    ]
                },
                "periodSeconds": 10,
                "timeoutSeconds": 5,
                "failureThreshold": 3,
                "terminationGracePeriodSeconds": 10,
            },
        }

    def _environment(self) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = [
            {"name": name, "value": _literal(value)} for name, value in self.job.environment
        ]
        if self.type is not None:
            return told  # GKE tells a pod of its slice, and of the other slices, by itself
        name = self.job.name
        index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        return [
            *told,
            {
                "name": "JAX_COORDINATOR_ADDRESS",
                "value": f"{name}-{self._role}-0-0.{name}:{_PORT}",
            },
            {"name": "JAX_NUM_PROCESSES", "value": str(self.nodes)},
            {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        ]

    def _volumes(self) -> list[dict[str, Any]]:
        kept: dict[str, Any]
        if self.bucket is not None:
            kept = {
                "csi": {
                    "driver": "gcsfuse.csi.storage.gke.io",
                    "volumeAttributes": {
                        "bucketName": self.bucket,
                        "mountOptions": "implicit-dirs",
                    },
                }
            }
        else:
            claim = self.claim or f"{self.job.name}-runs"
            kept = {"persistentVolumeClaim": {"claimName": claim}}
        volumes: list[dict[str, Any]] = [{"name": "runs", **kept}]
        if self.type is None:
            # NCCL's; a container has 64 MB of its own.
            volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
        return volumes


def _literal(word: str) -> str:
    """A word that arrives as it is: Kubernetes fills ``$(NAME)`` and reads ``$$`` as ``$``."""
    return word.replace("$", "$$")
