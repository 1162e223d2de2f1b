"""The manifests of deploy/ as they are applied: a kustomization's resources, with its patches in them."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def build(directory: Path, *components: Path) -> list[Any]:
    """The objects that `kubectl apply -k` would send, names of images left as they are."""
    kustomization = read(directory / "kustomization.yaml")
    objects: list[Any] = []
    for name in kustomization.get("resources", ()):
        path = directory / name
        objects += build(path.resolve()) if path.is_dir() else [read(path)]
    for where in (directory, *components):
        for patch in read(where / "kustomization.yaml").get("patches", ()):
            (at,) = [number for number, one in enumerate(objects) if is_of(one, patch["target"])]
            objects[at] = patched(objects[at], read(where / patch["path"]))
    return objects


def is_of(one: Any, target: Any) -> bool:
    return (one["kind"], one["metadata"]["name"]) == (target["kind"], target["name"])


def patched(document: Any, operations: Any) -> Any:
    """RFC 6902, as far as `add` and `replace` go; what is replaced must be there."""
    document = copy.deepcopy(document)
    for operation in operations:
        *parents, last = [
            part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]
        ]
        place = document
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        key: Any = int(last) if isinstance(place, list) and last != "-" else last
        if operation["op"] == "replace":
            assert place[key] is not None
            place[key] = operation["value"]
        elif isinstance(place, list):
            place.insert(len(place) if key == "-" else key, operation["value"])
        else:
            place[key] = operation["value"]
    return document


def of_kind(objects: list[Any], kind: str) -> Any:
    (found,) = [one for one in objects if one["kind"] == kind]
    return found


def dockerfile(instruction: str) -> Iterator[str]:
    """The arguments of each such line."""
    joined = DOCKERFILE.replace("\\\n", " ")
    yield from re.findall(rf"^{instruction} (.*)$", joined, re.MULTILINE)
