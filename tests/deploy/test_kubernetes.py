"""What is sent to Kubernetes is of its schemas, and of one mind with the Dockerfile and the server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from pydantic_settings import CliApp

from server.settings import Settings
from tests.deploy.manifests import KUBERNETES, build, dockerfile, of_kind, patched, read

BASE, OVERLAYS, GPU = KUBERNETES / "base", KUBERNETES / "overlays", KUBERNETES / "components" / "gpu"
BUILDS = {
    "base": build(BASE),
    "pvc": build(OVERLAYS / "pvc"),
    "bucket": build(OVERLAYS / "bucket"),
    "pvc on GPUs": build(OVERLAYS / "pvc", GPU),
}

builds = pytest.mark.parametrize("objects", BUILDS.values(), ids=BUILDS)


def pod(objects: list[Any]) -> Any:
    return of_kind(objects, "Deployment")["spec"]["template"]["spec"]


def container(objects: list[Any]) -> Any:
    (one,) = pod(objects)["containers"]
    return one


@builds
@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_every_object_is_of_kubernetes_own_schema(objects: list[Any], version: str) -> None:
    held_to = {kubernetes_validate.validate(one, version, strict=True) for one in objects}
    assert held_to == {version}, "and not to an older one's, for want of this"


def test_the_schema_refuses_what_is_misspelt() -> None:
    (service,) = [one for one in BUILDS["base"] if one["kind"] == "Service"]
    wrong = patched(service, [{"op": "add", "path": "/spec/portz", "value": []}])
    with pytest.raises(kubernetes_validate.ValidationError, match="portz"):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


def test_every_file_is_part_of_a_kustomization() -> None:
    named: set[Path] = set()
    for path in KUBERNETES.rglob("kustomization.yaml"):
        listed = read(path)
        names = [*listed.get("resources", ()), *(patch["path"] for patch in listed.get("patches", ()))]
        named |= {path, *((path.parent / name).resolve() for name in names)}
    assert {path.resolve() for path in KUBERNETES.rglob("*.yaml")} <= named


@builds
def test_user_port_and_volumes_are_those_of_the_image(objects: list[Any]) -> None:
    (user,) = re.findall(r"--uid (\d+)", " ".join(dockerfile("RUN")))
    assert pod(objects)["securityContext"]["runAsUser"] == int(user)
    (port,) = dockerfile("EXPOSE")
    assert container(objects)["ports"] == [{"name": "http", "containerPort": int(port)}]
    registry, cache = re.findall(r'"([^"]+)"', next(iter(dockerfile("VOLUME"))))
    mounts = {mount["mountPath"] for mount in container(objects)["volumeMounts"]}
    assert cache in mounts
    assert mounts - {registry, cache, "/tmp"} == set()
    volumes = {volume["name"] for volume in pod(objects)["volumes"]}
    assert {mount["name"] for mount in container(objects)["volumeMounts"]} == volumes


@builds
def test_options_are_ones_that_the_server_takes(objects: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    one = container(objects)
    for entry in one["env"]:
        if entry["name"].startswith("BRAINSTACKS_"):
            monkeypatch.setenv(entry["name"], entry["value"])
            assert entry["name"].removeprefix("BRAINSTACKS_").lower() in Settings.model_fields
    program, *flags = one["args"]
    assert program == "brainstacks-serve"
    settings = CliApp.run(Settings, cli_args=flags)
    assert (settings.host, settings.port) == ("0.0.0.0", one["ports"][0]["containerPort"])
    mounts = {mount["mountPath"] for mount in one["volumeMounts"]}
    assert str(settings.upload_dir) in mounts
    grace = pod(objects)["terminationGracePeriodSeconds"]
    assert grace >= settings.drain_timeout + one["lifecycle"]["preStop"]["sleep"]["seconds"] + 10


def test_overlays_change_where_the_registry_is() -> None:
    def registry(name: str) -> str:
        args = container(BUILDS[name])["args"]
        return str(args[args.index("--registry") + 1])

    assert registry("base") == registry("pvc") == "/registry"
    claims = [one.get("persistentVolumeClaim") for one in pod(BUILDS["pvc"])["volumes"]]
    assert of_kind(BUILDS["pvc"], "PersistentVolumeClaim")["metadata"]["name"] in [
        claim["claimName"] for claim in claims if claim
    ]
    assert registry("bucket").startswith("s3://")
    secrets = [one["secretRef"]["name"] for one in container(BUILDS["bucket"])["envFrom"]]
    assert len(secrets) == 2


def test_gpus_are_asked_for_by_the_component_alone() -> None:
    limits = {name: container(objects)["resources"]["limits"] for name, objects in BUILDS.items()}
    assert {name for name, limit in limits.items() if limit.get("nvidia.com/gpu") == 1} == {"pvc on GPUs"}
    tags = {image["newTag"] for path in (BASE, GPU) for image in read(path / "kustomization.yaml")["images"]}
    stages = {line.split(" AS ")[1] for line in dockerfile("FROM") if line.startswith("installed")}
    assert tags == stages - {"ray"}


@builds
def test_pods_are_confined_and_their_secrets_are_elsewhere(objects: list[Any]) -> None:
    assert pod(objects)["securityContext"]["runAsNonRoot"] is True
    assert pod(objects)["automountServiceAccountToken"] is False
    context = container(objects)["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert not [entry for entry in container(objects)["env"] if "KEY" in entry["name"]]


@builds
def test_probes_ask_what_operations_says_they_should(objects: list[Any]) -> None:
    one = container(objects)
    assert one["livenessProbe"]["httpGet"]["path"] == "/health"
    assert one["readinessProbe"]["httpGet"]["path"] == "/ready"
    startup = one["startupProbe"]
    assert startup["httpGet"]["path"] == "/health"
    (period,) = re.findall(r"--start-period=(\d+)s", " ".join(dockerfile("HEALTHCHECK")))
    assert startup["periodSeconds"] * startup["failureThreshold"] >= int(period)


@builds
def test_service_budget_and_policy_select_the_pods(objects: list[Any]) -> None:
    labels = of_kind(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert of_kind(objects, "Service")["spec"]["selector"] == labels
    assert of_kind(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    policy = of_kind(objects, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    named = {port["name"] for port in container(objects)["ports"]}
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == named
    assert {port["targetPort"] for port in of_kind(objects, "Service")["spec"]["ports"]} == named
