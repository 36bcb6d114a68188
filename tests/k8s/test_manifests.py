"""The overlays are valid for Kubernetes and KubeRay, and consistent in themselves and with the project."""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cluster.config.cluster_config import from_mapping
from tests.k8s.crd import schema_of
from tests.k8s.manifests import FOLDER, OVERLAYS, ROOT, groups, of_kind, render, serve_config

KUBERNETES_VERSION = "1.31"
CRDS = ROOT.parent / "shared" / "crds"

overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@pytest.fixture(scope="module")
def ray_service_schema() -> dict[str, Any]:
    path = CRDS / "ray.io_rayservices.yaml"
    if not path.exists():
        pytest.skip("KubeRay's definitions (../shared/crds) are not beside this checkout")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return schema_of(yaml.load(path.read_text(encoding="utf-8"), loader), "v1")


@pytest.fixture(scope="module")
def app() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Serve warns at its first import
        return importlib.import_module("cluster.app")


@overlay
def test_core_objects_are_valid(overlay: str) -> None:
    core = [item for item in render(overlay) if not item["apiVersion"].startswith("ray.io/")]
    assert {"Namespace", "Service", "NetworkPolicy", "PodDisruptionBudget"} <= {item["kind"] for item in core}
    for item in core:
        kubernetes_validate.validate(item, KUBERNETES_VERSION, strict=True)


@overlay
def test_pods_of_the_ray_cluster_are_valid(overlay: str) -> None:
    for group in groups(render(overlay)):
        pod = {"apiVersion": "v1", "kind": "Pod", **group.template}
        pod["metadata"] = {"name": group.name, **group.template["metadata"]}
        kubernetes_validate.validate(pod, KUBERNETES_VERSION, strict=True)


@overlay
def test_the_ray_service_fits_its_definition(overlay: str, ray_service_schema: dict[str, Any]) -> None:
    jsonschema.Draft4Validator(ray_service_schema).validate(of_kind(render(overlay), "RayService"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param(("spec", "serveConfigv2"), "x", id="misspelt"),
        pytest.param(
            ("spec", "rayClusterConfig", "headGroupSpec", "replicas"), 1, id="field-of-another-object"
        ),
        pytest.param(("spec", "rayClusterConfig", "authOptions", "mode"), "tokens", id="not-in-enum"),
        pytest.param(
            ("spec", "rayClusterConfig", "headGroupSpec", "rayStartParams", "num-cpus"), 0, id="no-string"
        ),
    ],
)
def test_the_definition_refuses_what_is_wrong(
    ray_service_schema: dict[str, Any], path: tuple[str, ...], value: object
) -> None:
    service = of_kind(render("cpu"), "RayService")
    inner = service
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft4Validator(ray_service_schema).validate(service)


def test_every_file_holds_one_object_and_belongs_to_a_kustomization() -> None:
    for path in sorted(FOLDER.rglob("*.yaml")):
        assert len(list(yaml.safe_load_all(path.read_text(encoding="utf-8")))) == 1, path
        if path.name == "kustomization.yaml" or path.parent.name == "secrets":
            continue
        kustomization = yaml.safe_load((path.parent / "kustomization.yaml").read_text(encoding="utf-8"))
        patches = [patch["path"] for patch in kustomization.get("patches", ())]
        assert path.name in [*kustomization["resources"], *patches], path


@overlay
def test_serve_config_names_the_application_with_arguments_that_it_takes(
    overlay: str, app: ModuleType
) -> None:
    content = serve_config(render(overlay))
    (application,) = content["applications"]
    assert application["import_path"] == "cluster.app:build"
    config = from_mapping(application["args"])
    assert config.to_mapping().keys() <= application["args"].keys()
    (deployment,) = application["deployments"]
    assert deployment["name"] == app.build_from(config)._bound_deployment.name
    assert content["grpc_options"]["grpc_servicer_functions"] == list(app.GRPC_SERVICERS)
    for path in app.GRPC_SERVICERS:
        module, _, name = path.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))


def test_the_gpu_overlay_has_one_gpu_for_each_actor_of_its_group() -> None:
    objects = render("gpu")
    config = from_mapping(serve_config(objects)["applications"][0]["args"])
    assert (config.model, config.device, config.gpus_per_actor) == (
        "microsoft/Phi-3.5-MoE-instruct",
        "cuda",
        1,
    )
    head, dense, expert = groups(objects)
    assert "nvidia.com/gpu" not in head.container["resources"]["limits"]
    assert (dense.name, dense.replicas) == ("dense", 1)
    assert (expert.name, expert.replicas) == ("expert", config.num_expert_actors)
    for group in (dense, expert):
        assert group.container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        # The operator pastes the value into a shell, so the quotes around the JSON are part of it.
        resources = json.loads(json.loads(group.start_params["resources"]))
        assert resources[f"phimoe_{group.name}"] == 1
        claims = [
            volume["persistentVolumeClaim"]["claimName"]
            for volume in group.template["spec"]["volumes"]
            if "persistentVolumeClaim" in volume
        ]
        assert claims == [of_kind(objects, "PersistentVolumeClaim")["metadata"]["name"]]


@overlay
def test_all_pods_are_confined_probed_limited_and_share_rays_environment(overlay: str) -> None:
    objects = render(overlay)
    assert of_kind(objects, "RayService")["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    environment = of_kind(objects, "ConfigMap")
    assert environment["data"]["RAY_health_check_period_ms"] == "1000"
    kind = {"cpu": "cpu", "gpu": "cuda"}[overlay]
    version = _project_version()
    for group in groups(objects):
        spec, container = group.template["spec"], group.container
        assert container["image"] == f"phimoe-cluster:{version}-{kind}"
        assert container["envFrom"] == [{"configMapRef": {"name": environment["metadata"]["name"]}}]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert spec["serviceAccountName"] == of_kind(objects, "ServiceAccount")["metadata"]["name"]
        assert spec["automountServiceAccountToken"] is False
        assert container["readinessProbe"] and container["livenessProbe"]
        assert container["resources"]["requests"]["cpu"] and container["resources"]["limits"]["memory"]


@overlay
def test_service_and_policies_select_the_pods_that_they_are_meant_for(overlay: str) -> None:
    objects = render(overlay)
    pods = list(groups(objects))
    service = of_kind(objects, "Service")["spec"]
    ingress_groups = [group for group in pods if service["selector"].items() <= group.labels.items()]
    assert [group.name for group in ingress_groups] == [{"cpu": "worker", "gpu": "dense"}[overlay]]
    options = serve_config(objects)
    served = {"serve": options["http_options"]["port"], "serve-grpc": options["grpc_options"]["port"]}
    (deployment,) = options["applications"][0]["deployments"]
    placed = deployment["ray_actor_options"]
    assert placed["num_cpus"] > 0 and pods[0].start_params["num-cpus"] == "0", (
        "ingress replicas may run on the head"
    )
    for group in ingress_groups:
        given = json.loads(json.loads(group.start_params.get("resources", '"{}"')))
        assert placed.get("resources", {}).keys() <= given.keys()
        assert {port["name"]: port["containerPort"] for port in group.container["ports"]} == served
        assert group.container["readinessProbe"]["httpGet"]["path"] == "/-/healthz"
    assert {port["targetPort"]: port["port"] for port in service["ports"]} == served

    num_pods = sum(group.replicas for group in pods)
    budget = of_kind(objects, "PodDisruptionBudget")["spec"]
    selectors = [budget["selector"]["matchLabels"]]
    selectors += [
        item["spec"]["podSelector"]["matchLabels"] for item in objects if item["kind"] == "NetworkPolicy"
    ]
    assert all(selector.items() <= group.labels.items() for selector in selectors for group in pods)
    assert budget["minAvailable"] == num_pods - 1, "exactly one pod at a time may be drained"


def test_secret_templates_are_valid_and_hold_no_secret() -> None:
    paths = sorted((FOLDER / "secrets").glob("*.yaml"))
    assert [path.stem for path in paths] == ["hugging-face", "keys", "ray-auth"]
    for path in paths:
        secret = yaml.safe_load(path.read_text(encoding="utf-8"))
        kubernetes_validate.validate(secret, KUBERNETES_VERSION, strict=True)
        assert set(secret["stringData"].values()) == {""}


def test_the_image_runs_as_the_user_that_the_pods_name() -> None:
    lines = (FOLDER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    context = next(iter(groups(render("cpu")))).template["spec"]["securityContext"]
    assert users == [f"{context['runAsUser']}:{context['runAsGroup']}"]
    copied = {
        word
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied == {line[1:] for line in ignored if line.startswith("!")}, (
        "the build's context lacks a file"
    )


def _project_version() -> str:
    lines = (Path(ROOT) / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    (version,) = (line.split('"')[1] for line in lines if line.startswith("version = "))
    return version


@overlay
def test_pods_with_an_ingress_see_keys_and_certificate_if_they_exist(overlay: str) -> None:
    seen = 0
    for group in groups(render(overlay)):
        pod = group.template
        if pod["metadata"]["labels"].get("phimoe/ingress") != "true":
            continue
        volumes = {item["name"]: item.get("secret") for item in pod["spec"]["volumes"]}
        assert volumes["keys"] == {"secretName": "phimoe-keys", "optional": True}
        assert volumes["tls"] == {"secretName": "phimoe-tls", "optional": True}
        mounts = {item["name"]: item["mountPath"] for item in pod["spec"]["containers"][0]["volumeMounts"]}
        assert (mounts["keys"], mounts["tls"]) == ("/etc/phimoe/keys", "/etc/phimoe/tls")
        seen += 1
    assert seen == 1


@overlay
def test_the_addresses_of_a_serve_config_count_as_open_to_everybody(overlay: str, app: ModuleType) -> None:
    application = app.build(serve_config(render(overlay))["applications"][0]["args"])
    mapping = application._bound_deployment.init_args[0]
    assert from_mapping(mapping).host == "0.0.0.0"
