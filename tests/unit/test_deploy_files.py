"""What lies under deploy/: manifests against Kubernetes' schemas, metric names against the table.

PodMonitor and PrometheusRule are no part of Kubernetes and have no schema in the package: the
fields that Prometheus' operator requires of them are checked here by name.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.unit.triton import fake_pb_utils  # noqa: F401  installs the stub's module
from tidemill.frontends.triton import metric_table as table

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES_VERSIONS = ("1.28", "1.31", "1.34")
OPERATOR_KINDS = {"PodMonitor", "PrometheusRule"}
METRIC_NAME = re.compile(r"\b(?:tidemill|nv_trt_llm|nv_llm|nv)_[a-z0-9_]+\b")
HISTOGRAM_SUFFIXES = ("_bucket", "_sum", "_count")


@pytest.fixture(scope="module")
def render() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deploy_render", DEPLOY / "render.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def manifests(render: ModuleType) -> dict[str, dict[str, Any]]:
    text = render.render(render.Values("registry.example/tidemill:1", name="mill"))
    documents = list(yaml.safe_load_all(text))
    assert all(document["metadata"]["name"] == "mill" for document in documents)
    return {document["kind"]: document for document in documents}


def exported_names() -> set[str]:
    names: set[str] = set()
    for family in table.FAMILIES:
        suffixes = HISTOGRAM_SUFFIXES if family.kind == table.HISTOGRAM else ("",)
        names |= {family.name + suffix for suffix in suffixes}
    return names


def test_every_kind_is_rendered_once(manifests: dict[str, dict[str, Any]]) -> None:
    assert set(manifests) == OPERATOR_KINDS | {
        "Deployment",
        "Service",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "HorizontalPodAutoscaler",
    }


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_manifests_follow_kubernetes_schemas_strictly(
    manifests: dict[str, dict[str, Any]], version: str
) -> None:
    for kind in sorted(set(manifests) - OPERATOR_KINDS):
        kubernetes_validate.validate(manifests[kind], version, strict=True)


def test_schema_check_notices_a_misspelt_field(manifests: dict[str, dict[str, Any]]) -> None:
    broken = json.loads(json.dumps(manifests["Deployment"]))
    broken["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.31", strict=True)


def test_manifests_agree_with_one_another(manifests: dict[str, dict[str, Any]]) -> None:
    pod = manifests["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8000, "grpc": 8001, "metrics": 8002}
    used = {port["targetPort"] for port in manifests["Service"]["spec"]["ports"]}
    used |= {each["port"] for each in manifests["PodMonitor"]["spec"]["podMetricsEndpoints"]}
    used |= {container[probe]["httpGet"]["port"] for probe in container if probe.endswith("Probe")}
    assert used <= set(ports)
    labels = pod["metadata"]["labels"]
    for selector in (
        manifests["Service"]["spec"]["selector"],
        manifests["PodMonitor"]["spec"]["selector"]["matchLabels"],
        manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    target = manifests["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]
    assert target == manifests["Deployment"]["metadata"]["name"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["spec"]["volumes"]}


def test_containers_flags_are_those_of_serve(manifests: dict[str, dict[str, Any]]) -> None:
    (container,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    help_text = subprocess.run(
        [sys.executable, "-m", "tidemill", "serve", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    flags = [part for part in container["args"] if part.startswith("--")]
    assert flags and all(flag in help_text for flag in flags)


def test_operators_kinds_have_what_the_operator_requires(
    manifests: dict[str, dict[str, Any]],
) -> None:
    monitor, rule = manifests["PodMonitor"], manifests["PrometheusRule"]
    for document in (monitor, rule):
        assert document["apiVersion"] == "monitoring.coreos.com/v1"
        assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(monitor["spec"]) == {"selector", "podMetricsEndpoints"}
    assert rule["spec"] == yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())


def test_rules_have_the_form_that_prometheus_reads() -> None:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())["groups"]
    for rule in (rule for group in groups for rule in group["rules"]):
        allowed = {"record", "expr"} if "record" in rule else {"alert", "expr"}
        assert allowed <= set(rule) <= allowed | {"for", "labels", "annotations"}
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert rule["annotations"]["summary"]
        for opening, closing in ("()", "[]", "{}"):
            assert rule["expr"].count(opening) == rule["expr"].count(closing), rule


@pytest.mark.parametrize(
    "path",
    [
        "grafana/tidemill.json",
        "prometheus/rules.yaml",
        "prometheus/adapter.yaml",
        "kubernetes/autoscaling.yaml",
    ],
)
def test_every_metric_that_is_used_is_exported(path: str) -> None:
    text = re.sub(r"#.*", "", (DEPLOY / path).read_text())
    recorded = {name for name in METRIC_NAME.findall(text) if f"record: {name}" in text}
    used = set(METRIC_NAME.findall(re.sub(r"tidemill:[a-z0-9_:]+", "", text))) - recorded
    assert used and used <= exported_names(), used - exported_names()


def test_dashboards_panels_are_complete_and_do_not_overlap() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "tidemill.json").read_text())
    places = set()
    for panel in dashboard["panels"]:
        assert panel["title"] and panel["targets"] and panel["fieldConfig"]["defaults"]["unit"]
        places.add((panel["gridPos"]["x"], panel["gridPos"]["y"]))
        assert all(target["expr"] and target["refId"] for target in panel["targets"])
    assert len(places) == len(dashboard["panels"]) == len({p["id"] for p in dashboard["panels"]})


def test_deployment_guide_lists_every_family() -> None:
    guide = (DEPLOY.parent / "docs" / "DEPLOY.md").read_text()
    missing = [family.name for family in table.FAMILIES if f"| `{family.name}` |" not in guide]
    assert not missing
