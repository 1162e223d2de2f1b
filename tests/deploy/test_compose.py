"""The compose file is of the specification and fits the Dockerfile, and what Grafana gets fits Prometheus."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from server.settings import Settings
from tests.deploy.manifests import DEPLOY, ROOT, dockerfile, read

TEXT = (DEPLOY / "docker-compose.yaml").read_text(encoding="utf-8")
COMPOSE: Any = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
DASHBOARD = json.loads((DEPLOY / "grafana" / "brainstacks.json").read_text(encoding="utf-8"))
(SOURCE,) = read(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yaml")["datasources"]
(PROVIDER,) = read(DEPLOY / "grafana" / "provisioning" / "dashboards" / "brainstacks.yaml")["providers"]
(JOB,) = read(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]


def example(file: str) -> dict[str, str]:
    """Variables of a file that is to be copied and filled in."""
    lines = (DEPLOY / f"{file}.example").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_it_is_of_the_specification_and_its_volumes_are_declared() -> None:
    PyCompose.from_yaml(TEXT).validate()
    mounted = {volume.split(":")[0] for service in SERVICES.values() for volume in service["volumes"]}
    assert {name for name in mounted if not name.startswith(".")} == set(COMPOSE["volumes"])


@pytest.mark.parametrize(("was", "wrong"), [("read_only: true", "read_only: 3"), ("tmpfs:", "tmpfz:")])
def test_the_specification_refuses_what_is_wrong(was: str, wrong: str) -> None:
    assert was in TEXT
    with pytest.raises(ValueError, match=r"read_only|boolean|tmpfz"):
        PyCompose.from_yaml(TEXT.replace(was, wrong)).validate()


def test_every_service_is_pinned_checked_restarted_and_published_on_this_machine_alone() -> None:
    for name, service in SERVICES.items():
        assert re.search(r":[\w.]+$", service["image"]), name
        assert not service["image"].endswith(":latest")
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["restart"] == "unless-stopped"
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name


def test_the_server_is_as_the_dockerfile_has_it() -> None:
    server = SERVICES["server"]
    assert (DEPLOY / server["build"]["context"] / "Dockerfile").resolve() == ROOT / "Dockerfile"
    assert server["build"]["target"] in {line.split(" AS ")[1] for line in dockerfile("FROM")}
    (port,) = dockerfile("EXPOSE")
    assert server["ports"][0].split(":")[-1] == port
    volumes = set(re.findall(r'"([^"]+)"', next(iter(dockerfile("VOLUME")))))
    assert {volume.split(":")[1] for volume in server["volumes"]} == volumes
    assert server["read_only"] is True
    for name, value in server["environment"].items():
        Settings.model_validate({name.removeprefix("BRAINSTACKS_").lower(): value})
    assert server["environment"]["BRAINSTACKS_UPLOAD_DIR"] in volumes


def test_secrets_come_from_files_that_git_ignores() -> None:
    for name, service in SERVICES.items():
        for variable in service.get("environment", {}):
            assert not re.search("KEY|PASSWORD|SECRET|TOKEN", variable), name
    files = [file for service in SERVICES.values() for file in service.get("env_file", ())]
    assert len(files) == len(set(files)) == 2  # no service gets another's secrets
    for file in files:
        assert set(example(file).values()) == {""}
        ignored = subprocess.run(
            ["git", "check-ignore", "--no-index", f"deploy/{file}"], cwd=ROOT, check=False
        )
        assert ignored.returncode == 0
    names = {name.removeprefix("BRAINSTACKS_").lower() for name in example("server.env")}
    assert names <= set(Settings.model_fields)


def test_prometheus_scrapes_the_server_where_the_page_on_metrics_says_they_are() -> None:
    (config,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "metrics.md").read_text("utf-8"), re.DOTALL)
    (shown,) = yaml.safe_load(config)["scrape_configs"]
    assert JOB["job_name"] == shown["job_name"]
    assert JOB.get("metrics_path", "/metrics") == "/metrics"
    (port,) = dockerfile("EXPOSE")
    assert JOB["static_configs"] == [{"targets": [f"server:{port}"]}]
    mounted = [volume.split(":")[:2] for volume in SERVICES["prometheus"]["volumes"]]
    assert ["./prometheus/prometheus.yml", "/etc/prometheus/prometheus.yml"] in mounted
    assert "--config.file=/etc/prometheus/prometheus.yml" in SERVICES["prometheus"]["command"]


def test_the_dashboard_finds_the_one_source_of_its_kind() -> None:
    (variable,) = [one for one in DASHBOARD["templating"]["list"] if one["type"] == "datasource"]
    assert variable["query"] == SOURCE["type"]
    assert SOURCE["isDefault"] is True
    (port,) = {port.split(":")[-1] for port in SERVICES["prometheus"]["ports"]}
    assert SOURCE["url"] == f"http://prometheus:{port}"
    uids = {panel["datasource"]["uid"] for panel in DASHBOARD["panels"] if "datasource" in panel}
    assert uids == {f"${{{variable['name']}}}"}


def test_grafana_is_given_the_dashboard_where_it_looks() -> None:
    mounted = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"] if volume[0] == ".")
    assert mounted["./grafana/brainstacks.json"].startswith(PROVIDER["options"]["path"])
    assert mounted["./grafana/provisioning"] == "/etc/grafana/provisioning"
    for source in mounted:
        assert (DEPLOY / source).exists()
