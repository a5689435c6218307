"""Makes the schemas beside this file from their sources: what a machine checks, without prose.

    python -m tests.launch.reduce_schemas jobset.x-k8s.io_jobsets.yaml _definitions.json

The first is JobSet's CRD, the second the definitions of Kubernetes' API as JSON Schema
(``v1.37.0-local-strict/_definitions.json`` of the PyPI package kubernetes-validate).  Needs PyYAML.
"""

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "schemas"
KINDS = ("io.k8s.api.batch.v1.Job", "io.k8s.api.core.v1.PersistentVolumeClaim")
PROSE = ("description", "example", "externalDocs")


def bare(schema: Any) -> Any:
    """The schema without its prose; a property may itself be named ``description``."""
    if isinstance(schema, list):
        return [bare(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {k: v for k, v in schema.items() if k not in PROSE or not isinstance(v, str)}
    return {
        key: {name: bare(inner) for name, inner in value.items()}
        if key in ("properties", "$defs")
        else bare(value)
        for key, value in kept.items()
    }


def reachable(definitions: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The definitions that these need."""
    found: dict[str, Any] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = bare(definitions[name])
        text = json.dumps(found[name])
        waiting += [part.split('"')[0] for part in text.split("#/$defs/")[1:]]
    return dict(sorted(found.items()))


def write(name: str, schema: dict[str, Any]) -> None:
    path = FOLDER / name
    path.write_text(json.dumps(schema, separators=(",", ":"), sort_keys=True) + "\n")
    print(path, path.stat().st_size)


def main(crd: str, definitions: str) -> None:
    import yaml

    versions = yaml.safe_load(Path(crd).read_text())["spec"]["versions"]
    (chosen,) = (v for v in versions if v["name"] == "v1alpha2")
    write("jobset-v1alpha2.json", bare(chosen["schema"]["openAPIV3Schema"]))
    all_of = json.loads(Path(definitions).read_text())["$defs"]
    kept = json.dumps(reachable(all_of, KINDS)).replace("/api/_definitions.json#/", "#/")
    write("kubernetes-v1.37.json", {"$defs": json.loads(kept)})


if __name__ == "__main__":
    main(*sys.argv[1:])
