"""Compose file, manifests, alerts and dashboard: each fits its schema, and the service and image that it speaks of."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import msgspec
import promql_parser
import pytest
import yaml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.container.generate import BENTO_UID_GID
from bentoml._internal.server.http.traffic import MaxConcurrencyMiddleware
from lightkube.models import apps_v1, autoscaling_v2, core_v1, networking_v1, policy_v1

from serve.app import _REFUSALS
from serve.settings import ServeSettings, read_settings
from serve.telemetry import Metrics
from tasks import TaskSpec
from tests.serve.conftest import ROOT, Server

DEPLOY = ROOT / "serve" / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
MANIFESTS = sorted(path for path in KUBERNETES.rglob("*.yaml") if path.name != "prometheus-adapter.yaml")
MODELS = {
    ("apps/v1", "Deployment"): apps_v1.Deployment,
    ("autoscaling/v2", "HorizontalPodAutoscaler"): autoscaling_v2.HorizontalPodAutoscaler,
    ("networking.k8s.io/v1", "NetworkPolicy"): networking_v1.NetworkPolicy,
    ("policy/v1", "PodDisruptionBudget"): policy_v1.PodDisruptionBudget,
    ("v1", "ConfigMap"): core_v1.ConfigMap,
    ("v1", "Namespace"): core_v1.Namespace,
    ("v1", "Service"): core_v1.Service,
}
OF_OTHERS = {"Kustomization", "Component", "ServiceMonitor", "PrometheusRule"}
"""Kinds that Kubernetes itself has no schema of."""


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return document


def base(name: str) -> dict[str, Any]:
    return load(KUBERNETES / "base" / f"{name}.yaml")


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = base("deployment")["spec"]["template"]["spec"]
    return spec


def container() -> dict[str, Any]:
    (one,) = pod()["containers"]
    return dict(one)


def compose() -> dict[str, Any]:
    return dict(load(DEPLOY / "compose.yaml")["services"]["paritybit"])


def check_manifest(document: dict[str, Any]) -> None:
    """Fails at a missing or unknown field, or a value of another type than Kubernetes' API has."""
    kind = document["kind"]
    if kind in OF_OTHERS:
        return
    model = MODELS[document["apiVersion"], kind]
    assert model.from_dict(document).to_dict() == document, f"{kind} has fields that Kubernetes does not know"


def monitoring_patch(kind: str) -> dict[str, Any]:
    """What the monitoring component adds to a manifest of the base."""
    patches = load(KUBERNETES / "monitoring" / "kustomization.yaml")["patches"]
    (text,) = [patch["patch"] for patch in patches if patch["target"]["kind"] == kind]
    (change,) = yaml.safe_load(text)
    return dict(change)


def adapter_rule() -> dict[str, Any]:
    (rule,) = load(KUBERNETES / "monitoring" / "prometheus-adapter.yaml")["rules"]["custom"]
    return dict(rule)


def alert_groups() -> list[dict[str, Any]]:
    return list(load(KUBERNETES / "monitoring" / "alerts.yaml")["spec"]["groups"])


def alerts() -> list[dict[str, Any]]:
    return [rule for group in alert_groups() for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return list(json.loads((KUBERNETES / "monitoring" / "dashboard.json").read_text(encoding="utf-8"))["panels"])


def queries() -> Iterator[str]:
    """All PromQL, with a value for what Grafana and the adapter fill in."""
    yield from (rule["expr"] for rule in alerts())
    for panel in panels():
        yield from (target["expr"].replace("$__rate_interval", "5m") for target in panel["targets"])
    rule = adapter_rule()
    yield rule["seriesQuery"]
    yield rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'pod="a"')


def selectors(query: str) -> list[promql_parser.VectorSelector]:
    """The time series that a query asks for; raises ValueError when it is not PromQL."""
    found = []

    def note(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(query), note)
    return found


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Our metrics: the names of their time series by the name of their family."""
    metrics = Metrics(TaskSpec(task="single_label", labels=("a", "b"), max_length=8))
    endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    families = chain.from_iterable(metric.collect() for metric in vars(metrics).values() if hasattr(metric, "collect"))
    return {family.name: {family.name + ending for ending in endings[family.type]} for family in families}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(KUBERNETES)))
def test_a_manifest_fits_the_schema_of_its_kind(path: Path) -> None:
    check_manifest(load(path))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda spec: spec["template"]["spec"].update(restartPolice="Always"),
        lambda spec: spec["template"]["spec"].update(terminationGracePeriodSeconds="45"),
        lambda spec: spec.pop("selector"),
    ],
    ids=["unknown field", "wrong type", "missing field"],
)
def test_the_schema_check_finds_what_is_wrong(spoil: Callable[[dict[str, Any]], None]) -> None:
    document = base("deployment")
    spoil(document["spec"])
    with pytest.raises((AssertionError, msgspec.ValidationError)):
        check_manifest(document)


def test_what_the_monitoring_component_adds_fits_the_schema() -> None:
    metric = monitoring_patch("HorizontalPodAutoscaler")["value"]
    assert autoscaling_v2.MetricSpec.from_dict(metric).to_dict() == metric
    way_in = monitoring_patch("NetworkPolicy")["value"]
    assert networking_v1.NetworkPolicyIngressRule.from_dict(way_in).to_dict() == way_in


@pytest.mark.parametrize("folder", ["base", "monitoring", "overlays/example"])
def test_kustomize_is_told_of_every_file_and_of_none_that_is_missing(folder: str) -> None:
    directory = KUBERNETES / folder
    kustomization = load(directory / "kustomization.yaml")
    named = {*kustomization["resources"], *kustomization.get("components", [])}
    assert all((directory / name).exists() for name in named)
    there = {path.name for path in directory.glob("*.yaml")} - {"kustomization.yaml", "prometheus-adapter.yaml"}
    assert there == {name for name in named if name.endswith(".yaml")}


@pytest.mark.real
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("folder", ["base", "overlays/example"])
def test_kubectl_builds_manifests_that_fit_their_schemas(folder: str) -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / folder)], capture_output=True, text=True, check=True, timeout=120
    )
    documents = {document["kind"]: document for document in yaml.safe_load_all(built.stdout)}
    for document in documents.values():
        check_manifest(document)
    assert {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"} <= set(
        documents
    )
    if folder != "base":
        assert [metric["type"] for metric in documents["HorizontalPodAutoscaler"]["spec"]["metrics"]] == [
            "Resource",
            "Pods",
        ]
        assert len(documents["NetworkPolicy"]["spec"]["ingress"]) == 2
        assert json.loads(documents["ConfigMap"]["data"]["paritybit.json"])["panels"] == panels()
        (one,) = documents["Deployment"]["spec"]["template"]["spec"]["containers"]
        assert one["image"] == "registry.example.com/paritybit-banking77:1"


def test_every_manifest_selects_the_pods_of_the_deployment() -> None:
    labels = base("deployment")["spec"]["template"]["metadata"]["labels"]
    assert labels
    assert base("deployment")["spec"]["selector"]["matchLabels"] == labels
    assert pod()["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"] == labels
    assert base("service")["spec"]["selector"] == labels
    assert base("disruption-budget")["spec"]["selector"]["matchLabels"] == labels
    assert base("network-policy")["spec"]["podSelector"]["matchLabels"] == labels
    target = base("autoscaler")["spec"]["scaleTargetRef"]
    assert {name: base("deployment")[name] for name in ("apiVersion", "kind")} | {
        "name": base("deployment")["metadata"]["name"]
    } == target


def test_a_scrape_finds_the_service_and_bears_the_job_of_the_alerts() -> None:
    monitor = load(KUBERNETES / "monitoring" / "service-monitor.yaml")["spec"]
    labels = base("service")["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    (job,) = {rule["expr"].partition('job="')[2].partition('"')[0] for rule in alerts() if "up{" in rule["expr"]}
    assert labels[monitor["jobLabel"]] == job
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in {port["name"] for port in base("service")["spec"]["ports"]}
    assert endpoint["path"] == "/metrics"


def test_ports_and_probes_are_those_of_bentoml() -> None:
    port = BentoMLContainer.http.port.get()
    (http,) = container()["ports"]
    assert http["containerPort"] == port
    assert all(one["targetPort"] == http["name"] for one in base("service")["spec"]["ports"])
    assert all(one["port"] == http["name"] for way in base("network-policy")["spec"]["ingress"] for one in way["ports"])
    probes = {name: container()[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {probe["path"] for probe in probes.values()} <= MaxConcurrencyMiddleware.BYPASS_PATHS
    assert probes["livenessProbe"]["path"] != probes["readinessProbe"]["path"] == probes["startupProbe"]["path"]
    assert all(probe["port"] == http["name"] for probe in probes.values())
    assert compose()["ports"][0].endswith(f":{port}")
    assert f":{port}{probes['readinessProbe']['path']}" in compose()["healthcheck"]["test"][-1]


@pytest.mark.real
def test_a_running_server_answers_every_path_that_is_probed_or_scraped(server: Server) -> None:
    paths = [container()[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    paths.append(load(KUBERNETES / "monitoring" / "service-monitor.yaml")["spec"]["endpoints"][0]["path"])
    assert [httpx.get(server.url + path, timeout=20).status_code for path in paths] == [200] * 4


def test_the_pod_keeps_to_the_restricted_standard_and_writes_to_its_own_folders_only() -> None:
    assert pod()["automountServiceAccountToken"] is False
    assert pod()["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": BENTO_UID_GID,
        "runAsGroup": BENTO_UID_GID,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    assert all(volume.keys() == {"name", "emptyDir"} for volume in volumes.values())
    writable = [Path(mount["mountPath"]) for mount in container()["volumeMounts"] if mount["name"] in volumes]
    home = next(Path(one["value"]) for one in container()["env"] if one["name"] == "BENTOML_HOME")
    assert Path("/tmp") in writable
    assert any(home.is_relative_to(folder) for folder in writable)


def test_the_engine_is_told_how_many_processors_it_has() -> None:
    resources = container()["resources"]
    assert resources["limits"].keys() == resources["requests"].keys() == {"cpu", "memory"}
    assert resources["limits"]["cpu"] == resources["requests"]["cpu"]
    assert compose()["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}


def test_a_pod_that_ends_has_time_for_the_longest_request() -> None:
    longest = ServeSettings().timeout_ms / 1000
    _, seconds = container()["lifecycle"]["preStop"]["exec"]["command"]
    assert pod()["terminationGracePeriodSeconds"] >= int(seconds) + longest + 5
    assert int(compose()["stop_grace_period"].removesuffix("s")) >= longest + 5


def test_a_rollout_and_a_drained_node_leave_replicas_at_work() -> None:
    assert base("deployment")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert base("autoscaler")["spec"]["minReplicas"] > base("disruption-budget")["spec"]["maxUnavailable"]
    assert "replicas" not in base("deployment")["spec"]


def test_nothing_gets_out_of_a_pod() -> None:
    policy = base("network-policy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []


def test_compose_fits_its_schema_and_is_as_locked_down_as_the_pod() -> None:
    schema = files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text(encoding="utf-8")
    jsonschema.validate(load(DEPLOY / "compose.yaml"), json.loads(schema))
    service = compose()
    assert service["user"] == f"{BENTO_UID_GID}:{BENTO_UID_GID}"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    (writable,) = [entry.partition(":")[0] for entry in service["tmpfs"]]
    assert Path(service["environment"]["BENTOML_HOME"]).is_relative_to(writable)
    assert service["ports"][0].startswith("127.0.0.1:")


def test_every_variable_is_a_setting_of_the_service() -> None:
    named = {
        name
        for path in DEPLOY.rglob("*.*")
        for name in re.findall(r"PARITYBIT_[A-Z_]+", path.read_text(encoding="utf-8"))
    }
    assert named
    assert named <= {f"PARITYBIT_{field.upper()}" for field in ServeSettings.model_fields}


def test_keys_come_from_a_secret_and_none_are_needed() -> None:
    (keys,) = [one for one in container()["env"] if one["name"] == "PARITYBIT_API_KEYS"]
    assert keys["valueFrom"]["secretKeyRef"] == {"name": "paritybit-keys", "key": "digests", "optional": True}
    assert compose()["environment"]["PARITYBIT_API_KEYS"] == "${PARITYBIT_API_KEYS:-}"
    assert read_settings({"PARITYBIT_API_KEYS": ""}).api_keys is None


def test_every_query_is_promql_of_metrics_that_the_service_exports(exported: dict[str, set[str]]) -> None:
    known = {"up"}.union(*exported.values())
    for query in queries():
        asked = {selector.name for selector in selectors(query)}
        assert asked
        assert asked <= known, query


def test_queries_ask_for_reasons_that_the_service_gives() -> None:
    matchers = [
        matcher for query in queries() for selector in selectors(query) for matcher in selector.matchers.matchers
    ]
    asked = {matcher.value for matcher in matchers if matcher.name == "reason"}
    assert asked
    assert asked <= {reason for _, reason in _REFUSALS.values()}


def test_the_dashboard_shows_every_metric_of_the_service(exported: dict[str, set[str]]) -> None:
    shown = {
        selector.name
        for panel in panels()
        for target in panel["targets"]
        for selector in selectors(target["expr"].replace("$__rate_interval", "5m"))
    }
    assert not {family for family, names in exported.items() if not names & shown}


def test_panels_stand_side_by_side() -> None:
    places = [panel["gridPos"] for panel in panels()]
    cells = [
        (x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
    assert len({panel["id"] for panel in panels()}) == len(places)


def test_the_autoscaler_s_metric_is_the_one_that_the_adapter_makes() -> None:
    rule = adapter_rule()
    series = selectors(rule["seriesQuery"])[0].name
    assert re.fullmatch(rule["name"]["matches"], series)
    assert monitoring_patch("HorizontalPodAutoscaler")["value"]["pods"]["metric"]["name"] == rule["name"]["as"]
    assert {label: known["resource"] for label, known in rule["resources"]["overrides"].items()} == {
        "namespace": "namespace",
        "pod": "pod",
    }


def test_alerts_have_names_of_their_own_and_say_what_to_do() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert len(names) == len(set(names))
    for rule in alerts():
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"].keys() == {"summary", "action"}
    assert {f"`{name}`" for name in names} == set(
        re.findall(r"`Paritybit\w+`", (DEPLOY / "README.md").read_text(encoding="utf-8"))
    )
