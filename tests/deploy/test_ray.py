"""The RayService is of KubeRay's v1 types, and its pods of Kubernetes' schema.

No package brings the schema of the CRD. What is here was written by reading KubeRay's `rayservice_types.go`
and `raycluster_types.go`, and Ray Serve's `schema.py`: the fields that we may come to use, and no others.
"""

from __future__ import annotations

import importlib
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from ray.serve import Application

from brainstacks.errors import ConfigError
from server.fleet.deployment import GRACE, application
from server.fleet.launch import ENTRANCE
from server.settings import Settings
from tests.deploy.manifests import DEPLOY, dockerfile, of_kind, patched, read
from tests.deploy.test_kubernetes import BUILDS

RAY_SERVICE: Any = read(DEPLOY / "ray" / "rayservice.yaml")
CLUSTER = RAY_SERVICE["spec"]["rayClusterConfig"]
SERVE: Any = yaml.safe_load(RAY_SERVICE["spec"]["serveConfigV2"])

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number", "minimum": 0}
YES_OR_NO: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
ANY: Schema = {"type": "object"}


def fields(required: str = "", **properties: Schema) -> Schema:
    """An object of these alone."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def several(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


HEAD = fields(
    "rayStartParams template",
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    rayStartParams=TEXTS,
    template=ANY,
)
WORKERS = fields(
    "groupName minReplicas maxReplicas rayStartParams template",
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    rayStartParams=TEXTS,
    template=ANY,
)
RAY_CLUSTER = fields(
    "headGroupSpec",
    rayVersion=TEXT,
    enableInTreeAutoscaling=YES_OR_NO,
    autoscalerOptions=ANY,
    headGroupSpec=HEAD,
    workerGroupSpecs=several(WORKERS),
)
RAY_SERVICE_V1 = fields(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    metadata=ANY,
    spec=fields("serveConfigV2 rayClusterConfig", serveConfigV2=TEXT, rayClusterConfig=RAY_CLUSTER),
)

DEPLOYMENT = fields(
    "name",
    name=TEXT,
    num_replicas=COUNT,
    autoscaling_config=fields(
        min_replicas=COUNT, max_replicas=COUNT, initial_replicas=COUNT, target_ongoing_requests=NUMBER,
        upscale_delay_s=NUMBER, downscale_delay_s=NUMBER,
    ),
    max_ongoing_requests=COUNT,
    max_queued_requests={"type": "integer", "minimum": -1},
    user_config=ANY,
    health_check_period_s=NUMBER,
    health_check_timeout_s=NUMBER,
    graceful_shutdown_wait_loop_s=NUMBER,
    graceful_shutdown_timeout_s=NUMBER,
    ray_actor_options=fields(num_cpus=NUMBER, num_gpus=NUMBER, memory=NUMBER, resources=ANY, runtime_env=ANY),
)  # fmt: skip
SERVE_CONFIG = fields(
    "applications",
    proxy_location={"enum": ["Disabled", "HeadOnly", "EveryNode"]},
    http_options=fields(host=TEXT, port=COUNT, request_timeout_s=NUMBER, keep_alive_timeout_s=NUMBER),
    grpc_options=ANY,
    logging_config=ANY,
    applications=several(
        fields(
            "import_path",
            name=TEXT,
            route_prefix={"type": "string", "pattern": r"^/$|^/.*[^/]$"},
            import_path={"type": "string", "pattern": r"^[\w.]+:\w+$"},
            runtime_env=ANY,
            args=ANY,
            deployments=several(DEPLOYMENT),
        )
    ),
)


def pods() -> dict[str, Any]:
    workers = {group["groupName"]: group["template"] for group in CLUSTER["workerGroupSpecs"]}
    return {"head": CLUSTER["headGroupSpec"]["template"], **workers}


def test_it_is_of_the_types_of_kuberay_and_ray_serve() -> None:
    assert [*jsonschema.Draft202012Validator(RAY_SERVICE_V1).iter_errors(RAY_SERVICE)] == []
    assert [*jsonschema.Draft202012Validator(SERVE_CONFIG).iter_errors(SERVE)] == []


@pytest.mark.parametrize("path", ["/spec/rayClusterConfig/rayVersio", "/spec/serveConfig"])
def test_the_schema_refuses_what_is_misspelt(path: str) -> None:
    wrong = patched(RAY_SERVICE, [{"op": "add", "path": path, "value": "x"}])
    with pytest.raises(jsonschema.ValidationError, match="Additional properties"):
        jsonschema.validate(wrong, RAY_SERVICE_V1)


@pytest.mark.parametrize("template", pods().values(), ids=pods())
def test_pods_are_of_kubernetes_own_schema(template: Any) -> None:
    one = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
    assert kubernetes_validate.validate(one, "1.37", strict=True) == "1.37"


def test_pods_run_as_the_images_user_and_are_confined() -> None:
    deployment = of_kind(BUILDS["base"], "Deployment")["spec"]["template"]["spec"]["securityContext"]
    for template in pods().values():
        context = template["spec"]["securityContext"]
        assert context["runAsUser"] == deployment["runAsUser"]
        assert context["runAsNonRoot"] is True
        (container,) = template["spec"]["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_serve_listens_where_the_pods_and_the_image_say() -> None:
    (port,) = dockerfile("EXPOSE")
    assert SERVE["http_options"] == {"host": "0.0.0.0", "port": int(port)}
    for template in pods().values():
        (container,) = template["spec"]["containers"]
        assert {"name": "serve", "containerPort": int(port)} in container["ports"]


def test_the_arguments_are_options_of_the_server() -> None:
    """One that a pod had as a variable would not be read there."""
    (configured,) = SERVE["applications"]
    assert isinstance(application({**configured["args"], "replica_gpus": 0}), Application)
    for template in pods().values():
        (container,) = template["spec"]["containers"]
        assert not [entry for entry in container.get("env", ()) if entry["name"].startswith("BRAINSTACKS_")]


def test_an_argument_that_is_no_option_is_refused() -> None:
    with pytest.raises(ConfigError, match="registri"):
        application({"registri": "x"})


def test_the_names_that_it_calls_are_there() -> None:
    (configured,) = SERVE["applications"]
    module, _, builder = configured["import_path"].partition(":")
    assert getattr(importlib.import_module(module), builder) is application
    bound = application({"replica_gpus": 0})
    assert [one["name"] for one in configured["deployments"]] == [bound._bound_deployment.name]
    for template in pods().values():
        (container,) = template["spec"]["containers"]
        variables = {entry["name"]: entry["value"] for entry in container["env"]}
        assert variables["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == ENTRANCE
    module, _, name = ENTRANCE.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))
    assert CLUSTER["rayVersion"] == ray.__version__


def test_replicas_find_workers_and_end_before_their_pods_do() -> None:
    (configured,) = SERVE["applications"]
    (deployment,) = configured["deployments"]
    (workers,) = CLUSTER["workerGroupSpecs"]
    bounds = deployment["autoscaling_config"]
    assert (bounds["min_replicas"], bounds["max_replicas"]) == (
        workers["minReplicas"],
        workers["maxReplicas"],
    )
    (container,) = workers["template"]["spec"]["containers"]
    assert deployment["ray_actor_options"]["num_cpus"] == int(container["resources"]["requests"]["cpu"])
    most = workers["template"]["spec"]["terminationGracePeriodSeconds"]
    assert Settings.model_fields["drain_timeout"].default + GRACE < most
    assert bounds["target_ongoing_requests"] <= Settings.model_fields["max_batch_size"].default
