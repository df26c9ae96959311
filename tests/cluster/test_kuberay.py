"""What `deploy --emit` writes: manifests for KubeRay, and a config that `serve deploy` makes a service of."""

import copy
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray._private.label_utils import validate_node_label_syntax
from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from mlops_ray import audit, cli, config, keys
from mlops_ray.client import Client
from mlops_ray.cluster import applications, head, kuberay, local, looper
from mlops_ray.errors import ConfigError, PolicyError, UsageError
from mlops_ray.serving import deploy, record
from mlops_ray.storage import Storage
from tests.conftest import EXAMPLE, ROOT
from tests.serving import packages

#: Four applications start beside whatever else the machine does.
PATIENCE_S = 180.0
MADE = ROOT / "configs" / "kuberay"
SCHEMA = yaml.safe_load((ROOT / "tests" / "fixtures" / "kuberay.yaml").read_text())
RAY = ("raycluster.yaml", "rayjob.yaml", "rayservice.yaml")
#: What docs/cluster.md says that the examples are made by.
COMMAND = [
    "deploy", "configs/factory_load.yaml", "--emit", "kuberay", "--output", "configs/kuberay",
    "--region", "eu-central-1", "--machine", "head=m7i.xlarge", "--machine", "cpu=m7i.2xlarge",
    "--machine", "spot=m7i.2xlarge", "--machine", "gpu=g6.2xlarge",
]  # fmt: skip


def made(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((MADE / name).read_text()))


def cluster_of(name: str) -> dict[str, Any]:
    spec = made(name)["spec"]
    return dict(spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec)


def pods(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    groups = {"head": cluster["headGroupSpec"]} | {g["groupName"]: g for g in cluster["workerGroupSpecs"]}
    return {name: {**group, "pod": group["template"]["spec"]} for name, group in groups.items()}


def project(folder: Path, **more: Any) -> Path:
    """A project file of a model that comes with the request."""
    file = folder / "project.yaml"
    file.write_text(json.dumps(packages.PROJECT | packages.OF_AMOUNTS | more))
    return file


# ---------------------------------------------------------------- KubeRay


def test_the_examples_are_what_the_command_of_the_page_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    command = [str(tmp_path) if word == "configs/kuberay" else word for word in COMMAND]
    cli.app(command, standalone_mode=False)
    assert {path.name for path in tmp_path.iterdir()} == {*RAY, "storage.yaml"}
    for path in tmp_path.iterdir():
        assert path.read_text() == (MADE / path.name).read_text(), f"{path.name}: run the command again"
    page = (ROOT / "docs" / "cluster.md").read_text().replace("\\\n", " ")
    assert f"mlops-ray {' '.join(COMMAND)}" in " ".join(page.split())


def test_the_page_the_manifests_and_the_schema_name_the_first_kuberay_that_knows_all_they_say() -> None:
    """The schema notes with which version a field came that is new."""
    schema = (ROOT / "tests" / "fixtures" / "kuberay.yaml").read_text()
    new = re.findall(r"# new in (\d+)\.(\d+)$", schema, re.MULTILINE)
    newest = max(tuple(map(int, version)) for version in new)
    page = (ROOT / "docs" / "cluster.md").read_text()
    texts = schema, page, *((MADE / name).read_text() for name in RAY)
    named = [re.search(r"KubeRay(?:\]\(\S+\))? (\d+)\.(\d+)", text) for text in texts]
    assert [found and tuple(map(int, found.groups())) for found in named] == [newest] * len(texts)


@pytest.mark.parametrize("name", RAY)
def test_a_manifest_says_only_what_kuberays_schema_knows(name: str) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(made(name))


def _without(document: dict[str, Any], *path: Any) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    at: Any = changed
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return changed


def _with(document: dict[str, Any], value: Any, *path: Any) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    at: Any = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


def test_the_schema_refuses_what_kubernetes_would() -> None:
    validator, whole = jsonschema.Draft202012Validator(SCHEMA), made("raycluster.yaml")
    container = ("spec", "headGroupSpec", "template", "spec", "containers", 0)
    wrong = [
        _without(whole, "spec", "headGroupSpec"),
        _without(whole, "spec", "workerGroupSpecs", 0, "maxReplicas"),
        _without(whole, *container, "image"),
        _with(whole, 7, *container, "env", 0, "value"),
        _with(whole, "2", "spec", "workerGroupSpecs", 0, "minReplicas"),
        _with(whole, "v3", "spec", "autoscalerOptions", "version"),
        _with(whole, {}, "spec", "autoscalerOption"),
        _with(whole, "Factory", "metadata", "name"),
        _with(whole, "eu central", "spec", "headGroupSpec", "labels", "region"),
        _with(whole, "RayJob", "kind"),
    ]
    assert validator.is_valid(whole)
    assert [validator.is_valid(each) for each in wrong] == [False] * len(wrong)


@pytest.mark.parametrize("name", RAY)
def test_pods_run_with_our_settings_and_no_rights_where_their_labels_say(name: str) -> None:
    for pool, group in pods(cluster_of(name)).items():
        (container,) = group["pod"]["containers"]
        environment = {each["name"]: each["value"] for each in container["env"]}
        assert head.of_nodes().items() <= environment.items()
        # KubeRay puts the token there, from its Secret.
        assert not environment.keys() & head.OF_ONE_MACHINE
        validate_node_label_syntax(group["labels"])
        assert environment["MLOPS_REGION"] == group["labels"]["region"] == "eu-central-1"
        assert group["labels"]["pool"] == pool
        assert group["labels"]["ray.io/market-type"] == ("spot" if pool == "spot" else "on-demand")
        assert group["pod"]["nodeSelector"] == {
            "topology.kubernetes.io/region": "eu-central-1",
            "node.kubernetes.io/instance-type": group["labels"]["machine"],
        }
        # KubeRay refuses any other beside autoscaler v2.
        assert group["pod"]["restartPolicy"] == "Never"
        assert group["pod"]["securityContext"]["runAsNonRoot"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert has_gpu == bool(group["pod"]["tolerations"]) == (pool == "gpu")


@pytest.mark.parametrize("name", RAY)
def test_the_heads_state_outlives_it_and_secrets_are_named_and_not_said(name: str) -> None:
    cluster = cluster_of(name)
    redis = cluster["gcsFaultToleranceOptions"]
    assert redis["redisPassword"] == {
        "valueFrom": {"secretKeyRef": {"name": "factory-load-redis", "key": "password"}}
    }
    assert cluster["authOptions"] == {"mode": "token", "secretName": "factory-load-ray"}
    # Ray of 2.52 or later is what tokens ask for.
    assert tuple(map(int, cluster["rayVersion"].split(".")[:2])) >= (2, 52)
    assert "num-cpus" in cluster["headGroupSpec"]["rayStartParams"]
    text = (MADE / name).read_text()
    assert "RAY_AUTH_TOKEN" not in text
    assert "REDIS_PASSWORD" not in text


def test_a_worker_is_sent_requests_when_its_front_end_answers_and_is_alive_while_ray_is() -> None:
    for name, ready in (("rayservice.yaml", "/-/healthz"), ("raycluster.yaml", "/api/local_raylet_healthz")):
        for pool, group in pods(cluster_of(name)).items():
            (container,) = group["pod"]["containers"]
            asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("readiness", "liveness")}
            assert asked["liveness"] == {"port": 52365, "path": "/api/local_raylet_healthz"}
            assert asked["readiness"]["path"] == ("/api/gcs_healthz" if pool == "head" else ready)
    assert made("rayservice.yaml")["spec"]["excludeHeadPodFromServeSvc"] is True


def test_pods_see_one_claim_and_the_project_file_on_it_and_are_made_anew_where_it_says_something_else(
    tmp_path: Path,
) -> None:
    claim, text = yaml.safe_load_all((MADE / "storage.yaml").read_text())
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert text["data"]["project.yaml"] == EXAMPLE.read_text()
    for group in pods(cluster_of("rayservice.yaml")).values():
        volumes = {each["name"]: each for each in group["pod"]["volumes"]}
        assert volumes["state"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert volumes["project"]["configMap"]["name"] == text["metadata"]["name"]
        mounts = {each["mountPath"] for each in group["pod"]["containers"][0]["volumeMounts"]}
        assert mounts == {"/mlops", "/mlops/project.yaml"}
    place = kuberay.Place("image")
    before = kuberay.emitted("kuberay", project(tmp_path), place)
    after = kuberay.emitted("kuberay", project(tmp_path, release={"canary": [5]}), place)
    assert all(before[name] != after[name] for name in before)


def test_what_kubernetes_cannot_have_is_refused_in_a_sentence(tmp_path: Path) -> None:
    def emit(region: str | None = None, machines: dict[str, str] | None = None, **more: Any) -> None:
        place = kuberay.Place("image", region=region, machines=machines or {})
        kuberay.emitted("kuberay", project(tmp_path, **more), place)

    emit()
    for name in ("7-rows", "r" * 41):
        with pytest.raises(UsageError, match="begin with a letter"):
            emit(project=name)
    with pytest.raises(UsageError, match="--machine: no pool 'gpus'; there are head, cpu, spot, gpu"):
        emit(machines={"gpus": "a"})
    (tmp_path / "more.yaml").write_text("features: {}")
    with pytest.raises(UsageError, match="is one file"):
        emit(include=["more.yaml"])
    table = packages.PROJECT["sources"]["table"] | {"policy": {"allowed_regions": ["eu-de"]}}  # type: ignore[index]
    emit(region="eu-de", sources={"table": table}, regions={"storage": "eu-de"})
    with pytest.raises(ConfigError, match="nobody says where this store stands: say its region"):
        emit(region="eu-de", sources={"table": table})
    for region in (None, "us-east-1"):
        with pytest.raises(PolicyError, match="rows may be in eu-de only: say which by --region"):
            emit(region=region, sources={"table": table})
    with pytest.raises(UsageError, match="'helm' is neither kuberay nor serve-config"):
        kuberay.emitted("helm", project(tmp_path), kuberay.Place("image"))


def test_without_a_folder_it_is_shown_and_a_machine_of_no_pool_costs_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["deploy", str(project(tmp_path)), "--emit", "kuberay"]
    cli.app([*command, "--image", "registry.example.org/rows:1"], standalone_mode=False)
    shown = list(yaml.safe_load_all(capsys.readouterr().out))
    kinds = ["PersistentVolumeClaim", "ConfigMap", "RayCluster", "RayJob", "RayService"]
    assert [each["kind"] for each in shown] == kinds
    assert pods(shown[2]["spec"])["cpu"]["pod"]["containers"][0]["image"] == "registry.example.org/rows:1"
    with pytest.raises(UsageError, match="--machine: 'small' says nothing on one side"):
        cli.app([*command, "--machine", "small"], standalone_mode=False)


# ---------------------------------------------------------------- Serve


def serve_config(file: Path) -> dict[str, Any]:
    (text,) = kuberay.emitted("serve-config", file, kuberay.Place("image")).values()
    return dict(yaml.safe_load(text))


def test_serves_own_schema_takes_the_config_and_knows_each_of_its_words(tmp_path: Path) -> None:
    found = serve_config(project(tmp_path))
    ServeDeploySchema.model_validate(found)
    # By itself it lets pass what it does not know.
    for part, schema in ((found, ServeDeploySchema), (found["http_options"], HTTPOptionsSchema)):
        assert part.keys() <= schema.model_fields.keys()
    for each in found["applications"]:
        assert each.keys() <= ServeApplicationSchema.model_fields.keys()
    # KubeRay hands the same to Serve.
    said = yaml.safe_load(made("rayservice.yaml")["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(said)


def test_it_makes_the_applications_that_serve_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed: list[Storage] = []
    monkeypatch.setattr(deploy, "claim", claimed.append)
    prices = tmp_path / "prices.yaml"
    prices.write_text((ROOT / "configs" / "prices.yaml").read_text())
    file = project(tmp_path, storage=str(tmp_path / "state"), cost={"prices": str(prices)})
    of = config.load(file)
    storage = Storage.open(of.storage)
    started = deploy.applications(of, storage, {}, {}, None)
    routes = {name: each.route for name, each in started.items()} | {looper.APPLICATION: None}
    listed = serve_config(file)["applications"]
    assert {each["name"]: each["route_prefix"] for each in listed} == routes
    for each in listed:
        built = applications.application(each["args"])
        if each["name"] in started:
            wanted = started[each["name"]].build()
            assert built._bound_deployment.name == wanted._bound_deployment.name
            assert built._bound_deployment.init_args == wanted._bound_deployment.init_args
            assert built._bound_deployment.ray_actor_options == wanted._bound_deployment.ray_actor_options
    told = [each["about"] for each in audit.entries(storage) if each["what"] == "a model is served"]
    assert told == [{"model": packages.NAME, "started": ["serve deploy"]}]
    # And leaves what they read, and whose service it is.
    assert claimed == [storage]
    assert storage.read_json(record.SETTINGS, f"{packages.NAME}.json")
    assert storage.read_json("cost/settings", f"{packages.NAME}.json")


def test_replicas_are_made_anew_for_what_they_are_made_of_and_nothing_for_what_stays_the_same(
    tmp_path: Path,
) -> None:
    def changed(**more: Any) -> set[str]:
        before, after = serve_config(project(tmp_path)), serve_config(project(tmp_path, **more))
        pairs = zip(before["applications"], after["applications"], strict=True)
        return {old["name"] for old, new in pairs if old != new}

    assert changed() == set()
    assert all("runtime_env" not in each for each in serve_config(project(tmp_path))["applications"])
    own = serve_config(
        project(
            tmp_path,
            features={"row": {"on_request": {"a": {"function": {"path": "own.f", "inputs": ["load"]}}}}},
        )
    )
    for each in own["applications"]:
        assert each["runtime_env"] == {"env_vars": {"MLOPS_RAY_SEARCH_PATH": str(tmp_path)}}
    assert changed(serving={"slo": {"p99_ms": 70}}) == {"reconciler", packages.NAME}
    assert changed(release={"canary": [5]}) == {"reconciler"}


def test_serve_deploy_makes_a_service_of_it_that_answers_who_has_a_key(tmp_path: Path) -> None:
    """Of the whole config but where it listens: a cluster of the tests is on loopback."""
    file = project(tmp_path, storage=str(tmp_path / "state"))
    of = config.load(file)
    storage = Storage.open(of.storage)
    made = packages.write(storage.path("artifacts", packages.NAME), of, 2.0)
    packages.crown(storage, packages.NAME, 1, made)
    key = keys.add(storage, "web", "predict")
    cluster = local.start(tmp_path / "cluster", cpus=2, gpus=0)
    try:
        said = serve_config(file)
        said["http_options"] = {"host": head.LOOPBACK, "port": cluster.http_port}
        (tmp_path / "serve.yaml").write_text(yaml.safe_dump(said))
        command = ["serve", "deploy", str(tmp_path / "serve.yaml"), "--address", cluster.dashboard]
        subprocess.run(
            [Path(sys.executable).parent / command[0], *command[1:]],
            env=os.environ | cluster.environment,
            check=True,
            capture_output=True,
        )
        url = f"http://{head.LOOPBACK}:{cluster.http_port}"
        wait_for(f"{url}/v2/models/{packages.NAME}/ready")
        answer = Client(url, packages.NAME, key).predict(
            [{"site": "a", "time": "2026-11-01T00:00Z", "load": 21.0}]
        )
        assert answer.predictions.tolist() == [pytest.approx(42.0, abs=0.01)]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{url}/v2/models/{packages.NAME}")
    finally:
        local.stop(tmp_path / "cluster")


def wait_for(url: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            assert urllib.request.urlopen(url, timeout=2).status == 200
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"{url} does not answer after {PATIENCE_S:.0f} s")
