"""The manifests are what the API server takes, and say what was asked."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from launch import tpus
from launch.gke import Gke
from launch.job import Job, LaunchError

ROOT = Path(__file__).parents[2]
SCHEMAS = Path(__file__).parent / "schemas"


def strict(schema: Any) -> Any:
    """The schema of a custom resource, with unknown fields as errors (the server prunes them)."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(made.get("properties"), dict) and made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    if made.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
        made.pop("anyOf", None)
    return made


def jobset_errors(manifest) -> list[str]:
    schema = strict(json.loads((SCHEMAS / "jobset-v1alpha2.json").read_text()))
    # Objects of metadata are checked by the server itself: take Kubernetes' own schema for them.
    kubernetes = json.loads((SCHEMAS / "kubernetes-v1.37.json").read_text())
    schema["$defs"] = kubernetes["$defs"]
    meta = {"$ref": "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
    schema["properties"]["metadata"] = meta
    found = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in found]


def kubernetes_errors(manifest, kind: str) -> list[str]:
    schema = json.loads((SCHEMAS / "kubernetes-v1.37.json").read_text())
    schema["$ref"] = f"#/$defs/{kind}"
    found = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in found]


def gke(**changes):
    job = Job(name="llama", command=("lm", "train", "c.py"), environment=(("A", "1"),))
    return Gke(**{"job": job, "image": "lm:1", "type": "v5e-64", "bucket": "b", **changes})


GPUS = {"type": None, "gpus": 8, "gpu_type": "nvidia-h100-80gb", "nodes": 4}

CASES = {
    "one slice": gke(),
    "slices": gke(type="v5p-128", slices=2, spot=True),
    "one host": gke(type="v6e-8"),
    "a claim": gke(bucket=None, claim="runs"),
    "a new volume": gke(bucket=None, volume_size="1Ti"),
    "gpus": gke(**GPUS),
    "gpus, all": gke(**GPUS, spot=True, namespace="team", service_account="t", queue="q"),
}


def parts(made: Gke):
    jobset = made.manifests()[-1]
    job = jobset["spec"]["replicatedJobs"][0]
    pod = job["template"]["spec"]["template"]
    return jobset, job, pod["spec"], pod["spec"]["containers"][0]


@pytest.mark.parametrize("made", CASES.values(), ids=CASES)
def test_every_manifest_fits_its_schema_with_unknown_fields_as_errors(made):
    *claims, jobset = made.manifests()
    assert jobset_errors(jobset) == []
    for claim in claims:
        assert kubernetes_errors(claim, "io.k8s.api.core.v1.PersistentVolumeClaim") == []
    assert len(claims) == (1 if made.volume_size else 0)


@pytest.mark.parametrize("made", CASES.values(), ids=CASES)
def test_the_job_in_it_fits_the_schema_of_kubernetes(made):
    _, job, _, _ = parts(made)
    whole = {"apiVersion": "batch/v1", "kind": "Job", **job["template"]}
    assert kubernetes_errors(whole, "io.k8s.api.batch.v1.Job") == []


def test_the_schemas_find_faults():
    jobset, job, pod, container = parts(gke())
    pod["terminationGracePeriod"] = 3
    container["resources"]["limits"]["google.com/tpu"] = [4]
    jobset["spec"]["failurePolicy"]["rules"][0]["action"] = "Stop"
    jobset["metadata"]["lables"] = {}
    found = "\n".join(jobset_errors(jobset))
    assert "terminationGracePeriod" in found
    assert "google.com/tpu" in found
    assert "'Stop' is not one of" in found
    assert "lables" in found
    whole = {"apiVersion": "batch/v1", "kind": "Job", **job["template"]}
    assert "terminationGracePeriod" in str(kubernetes_errors(whole, "io.k8s.api.batch.v1.Job"))


def test_the_printed_command_carries_the_manifests_and_shell_hands_them_on_unchanged():
    (command,) = gke(bucket=None, volume_size="1Ti").commands()
    assert command.argv == ("kubectl", "apply", "-f", "-")
    shell = command.text().replace("kubectl apply -f -", "cat", 1)
    done = subprocess.run(["bash"], input=shell, text=True, capture_output=True, check=True)
    listed = json.loads(done.stdout)
    assert [item["kind"] for item in listed["items"]] == ["PersistentVolumeClaim", "JobSet"]
    assert listed["items"] == gke(bucket=None, volume_size="1Ti").manifests()


@pytest.mark.parametrize(
    ("kind", "hosts", "chips", "topology"),
    [("v5e-8", 1, 8, "2x4"), ("v5e-64", 16, 4, "8x8"), ("v5p-128", 16, 4, "4x4x4")],
)
def test_a_slice_has_a_pod_for_each_host_with_all_of_its_chips(kind, hosts, chips, topology):
    _, job, pod, container = parts(gke(type=kind))
    spec = job["template"]["spec"]
    assert (spec["completions"], spec["parallelism"]) == (hosts, hosts)
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology


def test_every_slice_known_is_made_of_whole_hosts():
    for made in tpus._all():
        assert made.hosts * (made.chips // made.hosts) == made.chips
        assert made.chips // made.hosts in (1, 4, 8)


def test_gpu_nodes_find_their_coordinator_by_the_name_that_jobset_gives_it():
    made = gke(**GPUS)
    jobset, job, _, container = parts(made)
    told = {entry["name"]: entry for entry in container["env"]}
    # NAME-ROLE-JOB-POD.SUBDOMAIN, the subdomain being the JobSet's name unless said otherwise
    host = f"llama-{job['name']}-0-0.llama"
    assert jobset["spec"]["network"]["enableDNSHostnames"]
    assert "subdomain" not in jobset["spec"]["network"]
    assert told["JAX_COORDINATOR_ADDRESS"]["value"] == f"{host}:8476"
    assert told["JAX_NUM_PROCESSES"]["value"] == "4"
    assert "job-completion-index" in str(told["JAX_PROCESS_ID"]["valueFrom"])
    assert job["template"]["spec"]["completionMode"] == "Indexed"


def test_a_mistake_fails_the_set_and_a_disruption_does_not_count():
    jobset, job, _, _ = parts(gke())
    first, second = jobset["spec"]["failurePolicy"]["rules"]
    # The words of Kubernetes' controller of Jobs.
    mistake = "Container train for pod default/p failed with exit code 2 matching FailJob rule"
    other = mistake.replace("code 2", "code 20")
    gone = "Pod default/p has condition DisruptionTarget matching FailJob rule at index 1"
    assert first["action"] == "FailJobSet"
    assert re.search(first["onJobFailureMessagePatterns"][0], mistake)
    assert not re.search(first["onJobFailureMessagePatterns"][0], other)
    assert second["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert re.search(second["onJobFailureMessagePatterns"][0], gone)
    codes = job["template"]["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert codes == {"containerName": "train", "operator": "In", "values": [2]}


def test_the_probes_see_a_heartbeat_and_its_age(tmp_path):
    _, _, _, container = parts(gke(silence=30))
    beats = tmp_path / "launch-x1" / "heartbeats"
    beats.mkdir(parents=True)

    def probe(name):
        words = container[name]["exec"]["command"]
        words = [word.replace("/tmp", str(tmp_path)) for word in words]
        return subprocess.run(words, check=False, capture_output=True).returncode

    assert probe("startupProbe") != 0
    assert probe("livenessProbe") != 0
    beat = beats / "3.json"
    beat.write_text("{}")
    assert probe("startupProbe") == 0
    assert probe("livenessProbe") == 0
    subprocess.run(["touch", "-d", "-50 seconds", beat], check=True)
    assert probe("livenessProbe") == 0
    subprocess.run(["touch", "-d", "-70 seconds", beat], check=True)
    assert probe("startupProbe") == 0
    assert probe("livenessProbe") != 0


def test_dollars_arrive_as_they_were_given():
    words = ("lm", "$HOME", "$(NAME)", "$$", "a$", "$5")
    made = gke(job=Job(name="a", command=words, environment=(("NAME", "$(OTHER)"),)))
    _, _, _, container = parts(made)

    def expanded(word):  # as Kubernetes does: $$ is $, $(NAME) is its value
        return re.sub(r"\$\$|\$\((\w+)\)", lambda m: "$" if m[0] == "$$" else "FILLED", word)

    assert tuple(map(expanded, container["command"][-len(words) :])) == words
    assert expanded(container["env"][0]["value"]) == "$(OTHER)"


def test_the_probes_look_where_the_supervisor_keeps_the_heartbeats(tmp_path):
    _, _, _, container = parts(gke())
    probe = container["startupProbe"]["exec"]["command"][-1]
    script = "import os; open(os.environ['LM_HEARTBEATS'] + '/0.json', 'w'); " + (
        f"import subprocess; raise SystemExit(subprocess.call(['sh', '-c', {probe!r}]))"
    )
    words = [*container["command"][:4], "--attempts", "1", "--logs", str(tmp_path), "--"]
    assert words[:4] == ["python3", "-m", "launch", "local"]
    env = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    words = [sys.executable, *words[1:], sys.executable, "-c", script]
    done = subprocess.run(words, cwd=ROOT, env=env, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"type": "v5e-65"}, "nearest are v5litepod-64"),
        ({"type": "h100"}, "no TPU slice known here"),
        ({"type": None}, "either --type"),
        ({"gpus": 8}, "either --type"),
        ({"type": None, "gpus": 8}, "go together"),
        ({"bucket": None}, "--volume-size"),
        ({"claim": "a"}, "--volume-size"),
        ({"slices": 0}, "--slices 0 must be above zero"),
        ({"type": "v5e-8", "slices": 2}, "several hosts"),
        ({"chips_per_host": 3}, "does not divide"),
        ({"mount": "runs"}, "absolute path"),
        ({"namespace": "My"}, "for instance 'my'"),
    ],
)
def test_a_mistake_is_told(changes, told):
    with pytest.raises(LaunchError, match=re.escape(told)):
        gke(**changes)


@pytest.mark.parametrize("name", ["Llama", "7b", "a_b", "a-", "a" * 60, "a.b", ""])
def test_a_name_that_is_no_label_is_refused_with_one_that_is(name):
    with pytest.raises(LaunchError, match="Kubernetes") as refused:
        gke(job=Job(name=name, command=("lm",)))
    instead = str(refused.value).rpartition("'")[0].rpartition("'")[2]
    gke(job=Job(name=instead, command=("lm",)))
