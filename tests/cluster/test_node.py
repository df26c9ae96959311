"""cluster.yaml and its variants: Ray's own code reads them, scales and starts nodes by them; none runs."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import yaml
from ray._private.resource_and_label_spec import ResourceAndLabelSpec
from ray.autoscaler._private.command_runner import _with_environment_variables
from ray.autoscaler._private.util import hash_runtime_conf, prepare_config, validate_config, with_envs
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingReply, SchedulingRequest
from ray.autoscaler.v2.schema import AutoscalerInstance
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import NodeState, NodeStatus
from ray.core.generated.common_pb2 import LabelSelectorOperator
from ray.core.generated.instance_manager_pb2 import Instance, NodeKind

from mlops_ray.cluster import head, kuberay, meter, node
from mlops_ray.cluster.sizing import Machines
from mlops_ray.config import Policy
from mlops_ray.policy import label_selector
from tests.conftest import ROOT

FILES = {
    "aws": ROOT / "cluster.yaml",
    "gcp": ROOT / "configs" / "cluster" / "gcp.yaml",
    "onpremise": ROOT / "configs" / "cluster" / "onpremise.yaml",
}
CLOUDS = ("aws", "gcp")
#: Of a node of ours: where the autoscaler says it, and what `ray up` sets beside.
LABELS, THREADS = "RAY_OVERRIDE_LABELS", "OMP_NUM_THREADS"


def said(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load(FILES[name].read_text()))


@pytest.mark.parametrize("name", FILES)
def test_rays_own_reader_takes_the_file_and_refuses_it_with_a_word_that_it_does_not_know(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519").touch()
    prepared = prepare_config(said(name))
    validate_config(prepared)
    assert AutoscalingConfig(said(name), skip_content_hash=True).get_node_type_configs()
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        validate_config(prepared | {"idle_timeout": 1})


@pytest.mark.parametrize("name", FILES)
def test_whatever_is_copied_to_the_nodes_is_there_but_the_token_and_the_wheelhouse(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = said(name)["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    mounts.pop("~/wheelhouse", None)
    monkeypatch.chdir(ROOT)
    # It reads all of them.
    assert all(hash_runtime_conf(mounts, None, name))


# ---------------------------------------------------------------- what the node types are


@pytest.mark.parametrize("name", CLOUDS)
def test_labels_say_where_and_what_a_node_is_and_the_meter_takes_them(name: str) -> None:
    file = said(name)
    types = file["available_node_types"]
    assert set(types) == {"head", "cpu", "spot", "gpu"}
    for pool, kind in types.items():
        labels, asked = kind["labels"], kind["node_config"]
        assert (labels["region"], labels["pool"]) == (file["provider"]["region"], pool)
        assert labels["machine"] == asked.get("InstanceType", asked.get("machineType"))
        market = asked.get("InstanceMarketOptions", {}).get("MarketType")
        is_spot = "spot" in (market, asked.get("scheduling", [{}])[0].get("provisioningModel", "").lower())
        assert is_spot == (pool == "spot")
        made = meter.Node("a", labels, kind["resources"]["CPU"], kind["resources"].get("GPU", 0), 0, 0)
        (metered,) = meter.entry(60.0, 60.0, [made], [], "unnamed", {})["nodes"]
        assert (metered["type"], metered["spot"]) == (labels["machine"], is_spot)


@pytest.mark.parametrize("pool", ["head", "cpu", "spot", "gpu"])
def test_ray_takes_the_resources_and_labels_of_a_type_as_they_stand(
    pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = said("aws")["available_node_types"][pool]
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", json.dumps(kind["resources"]))
    monkeypatch.setenv(LABELS, json.dumps(kind["labels"]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    node = ResourceAndLabelSpec().resolve(is_head=pool == "head", node_ip_address="10.0.0.1")
    assert node.labels is not None
    assert kind["labels"].items() <= node.labels.items()
    found = node.to_resource_dict()
    assert {name: found.get(name, 0) for name in kind["resources"]} == kind["resources"]


def test_aws_starts_each_type_as_it_is_asked_for_and_finds_the_cpus_and_gpus_that_the_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("HOME", str(tmp_path))  # where it writes the key pair's
    from ray.autoscaler._private.aws import config as aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    monkeypatch.setattr(aws, "_configure_iam_role", lambda config: config)  # is none of the file's
    types = said("aws")["available_node_types"]
    with moto.mock_aws():
        bootstrapped = AWSNodeProvider.bootstrap_config(prepare_config(said("aws")))
        client = boto3.client("ec2", region_name=bootstrapped["provider"]["region"])
        machines = list({kind["labels"]["machine"] for kind in types.values()})
        sizes = client.describe_instance_types(InstanceTypes=machines)
        provider = AWSNodeProvider(bootstrapped["provider"], bootstrapped["cluster_name"])
        for pool, kind in bootstrapped["available_node_types"].items():
            provider.create_node(kind["node_config"], {"ray-user-node-type": pool}, 1)
        started = [i for r in client.describe_instances()["Reservations"] for i in r["Instances"]]
    cpus = {each["InstanceType"]: each["VCpuInfo"]["DefaultVCpus"] for each in sizes["InstanceTypes"]}
    gpus = {
        each["InstanceType"]: each["GpuInfo"]["Gpus"][0]["Count"]
        for each in sizes["InstanceTypes"]
        if "GpuInfo" in each
    }
    assert len(started) == len(types)
    for instance in started:
        pool = next(tag["Value"] for tag in instance["Tags"] if tag["Key"] == "ray-user-node-type")
        machine, resources = types[pool]["labels"]["machine"], types[pool]["resources"]
        assert instance["InstanceType"] == machine
        assert instance.get("InstanceLifecycle") == ("spot" if pool == "spot" else None)
        assert instance["Placement"]["AvailabilityZone"] == "eu-central-1a"
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
        assert resources == ({"CPU": 0} if pool == "head" else {"CPU": cpus[machine]}) | (
            {"GPU": gpus[machine]} if machine in gpus else {}
        )


# ---------------------------------------------------------------- how many there are


def _cluster(name: str) -> AutoscalingConfig:
    """Of a cloud's file, or of the manifest for Kubernetes, as the autoscaler in the head's pod reads it."""
    if name in CLOUDS:
        return AutoscalingConfig(said(name), skip_content_hash=True)
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    manifest = yaml.safe_load((ROOT / "configs" / "kuberay" / "raycluster.yaml").read_text())
    manifest["metadata"]["namespace"] = "default"
    return AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(manifest), skip_content_hash=True)


@pytest.fixture(scope="module", params=[*CLOUDS, "kuberay"])
def cluster(request: pytest.FixtureRequest) -> AutoscalingConfig:
    return _cluster(request.param)


def _request(resources: Mapping[str, float], selector: Mapping[str, str]) -> Any:
    """What asks for these resources on nodes with these labels, as `policy.label_selector` writes them."""
    is_in, is_not = LabelSelectorOperator.LABEL_OPERATOR_IN, LabelSelectorOperator.LABEL_OPERATOR_NOT_IN
    constraints = [
        (
            label,
            is_not if condition.startswith("!") else is_in,
            condition.removeprefix("!").removeprefix("in(").removesuffix(")").split(","),
        )
        for label, condition in selector.items()
    ]
    return ResourceRequestUtil.make(dict(resources), label_selectors=[constraints] if constraints else None)


def _running(of: AutoscalingConfig, pool: str, number: int, *, busy: bool, idle_s: float = 0) -> Any:
    kind = of.get_node_type_configs()[pool]
    free = {name: 0 if busy else amount for name, amount in kind.resources.items()}
    id = f"{pool}-{number}"
    return AutoscalerInstance(
        cloud_instance_id=id,
        ray_node=NodeState(
            node_id=id.encode().ljust(28, b"0"),
            instance_id=id,
            ray_node_type_name=pool,
            available_resources=free,
            total_resources=kind.resources,
            status=NodeStatus.RUNNING if busy else NodeStatus.IDLE,
            idle_duration_ms=int(1000 * idle_s),
            labels=kind.labels,
        ),
        im_instance=Instance(
            instance_id=id,
            instance_type=pool,
            cloud_instance_id=id,
            status=Instance.RAY_RUNNING,
            node_kind=NodeKind.HEAD if pool == of.get_head_node_type() else NodeKind.WORKER,
        ),
    )


def _scheduled(
    of: AutoscalingConfig,
    demands: Sequence[tuple[int, Mapping[str, float]]] = (),
    selector: Mapping[str, str] = {},
    instances: Sequence[Any] = (),
) -> SchedulingReply:
    """What Ray's autoscaler makes of so many demands each, beside nodes that run; the head always does."""
    top = _running(of, of.get_head_node_type(), 0, busy=True)
    requests = [_request(resources, selector) for count, resources in demands for _ in range(count)]
    return ResourceDemandScheduler(SimpleNamespace(log_cluster_scheduling_update=lambda **_: None)).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=of.get_node_type_configs(),
            max_num_nodes=of.get_max_num_nodes(),
            idle_timeout_s=of.get_idle_timeout_s(),
            resource_requests=ResourceRequestUtil.group_by_count(requests),
            current_instances=[top, *instances],
        )
    )


def _launched(reply: SchedulingReply) -> dict[str, int]:
    return {launch.instance_type: launch.count for launch in reply.to_launch}


def _least(of: AutoscalingConfig) -> list[Any]:
    """The two nodes that are always there, all in use."""
    return [_running(of, "cpu", number, busy=True) for number in range(2)]


def test_nothing_runs_on_the_head_and_two_nodes_are_there_for_a_service(cluster: AutoscalingConfig) -> None:
    assert cluster.get_node_resources(cluster.get_head_node_type())["CPU"] == 0
    assert _launched(_scheduled(cluster)) == {"cpu": 2}
    reply = _scheduled(cluster, [(1, {"CPU": 0.1})])
    assert _launched(reply) == {"cpu": 2}
    assert not reply.infeasible_resource_requests


def test_trials_with_gpus_bring_nodes_with_gpus_and_no_more_than_there_may_be(
    cluster: AutoscalingConfig,
) -> None:
    least = _least(cluster)
    assert _launched(_scheduled(cluster, [(3, {"CPU": 1, "GPU": 1})], instances=least)) == {"gpu": 3}
    reply = _scheduled(cluster, [(9, {"CPU": 1, "GPU": 1})], instances=least)
    assert _launched(reply) == {"gpu": 4}


def test_a_trial_whose_gpus_no_node_has_is_told_to_be_infeasible(cluster: AutoscalingConfig) -> None:
    reply = _scheduled(cluster, [(1, {"CPU": 1, "GPU": 2})], instances=_least(cluster))
    assert len(reply.infeasible_resource_requests) == 1
    assert not reply.to_launch


def test_trials_without_gpus_come_to_spot_nodes_first_then_to_others_and_to_gpus_last(
    cluster: AutoscalingConfig,
) -> None:
    least, cpus = _least(cluster), int(cluster.get_node_resources("cpu")["CPU"])

    def launched(nodes: int) -> dict[str, int]:
        return _launched(_scheduled(cluster, [(nodes * cpus, {"CPU": 1})], instances=least))

    assert launched(3) == {"spot": 3}
    assert launched(10) == {"spot": 8, "cpu": 2}
    assert launched(14) == {"spot": 8, "cpu": 6}
    assert launched(99) == {"spot": 8, "cpu": 6, "gpu": 4}


def test_replicas_bound_to_a_region_come_there_and_where_no_node_has_it_nothing_is_started(
    cluster: AutoscalingConfig,
) -> None:
    here = cluster.get_node_labels("cpu")["region"]
    least = _least(cluster)
    replica = [(5, {"CPU": 4})]
    allowed = label_selector([Policy(allowed_regions=(here, "xx-far"))])
    reply = _scheduled(cluster, replica, allowed, least)
    assert sum(_launched(reply).values()) >= 3
    assert not reply.infeasible_resource_requests
    elsewhere = _scheduled(cluster, replica, label_selector([Policy(allowed_regions=("xx-far",))]), least)
    assert not elsewhere.to_launch
    assert len(elsewhere.infeasible_resource_requests) == 5


def test_replicas_that_were_planned_on_a_type_of_machine_bring_it_and_spot_ones_only_where_those_were(
    cluster: AutoscalingConfig,
) -> None:
    least, replicas = _least(cluster), [(3, {"CPU": cluster.get_node_resources("cpu")["CPU"]})]
    cpu, gpu = (cluster.get_node_labels(pool)["machine"] for pool in ("cpu", "gpu"))
    machines = Machines(frozenset({cpu, gpu}))

    def launched(machine: str, spot: bool) -> dict[str, int]:
        return _launched(_scheduled(cluster, replicas, machines.labels(machine, spot), least))

    assert launched(cpu, False) == {"cpu": 3}
    assert launched(cpu, True) == {"spot": 3}
    assert launched(gpu, False) == {"gpu": 3}


def test_a_taken_spot_node_is_replaced(cluster: AutoscalingConfig) -> None:
    # What ran there asks again.
    left = [*_least(cluster), _running(cluster, "spot", 0, busy=True)]
    assert _launched(_scheduled(cluster, [(2, {"CPU": 2})], instances=left)) == {"spot": 1}


def test_idle_nodes_go_down_to_the_least_and_busy_ones_stay(cluster: AutoscalingConfig) -> None:
    idle_s = cluster.get_idle_timeout_s()
    assert idle_s == 600
    there = [
        *(_running(cluster, "cpu", number, busy=False, idle_s=idle_s + 1) for number in range(3)),
        _running(cluster, "spot", 0, busy=False, idle_s=idle_s + 1),
        _running(cluster, "spot", 1, busy=False, idle_s=idle_s - 1),
        _running(cluster, "spot", 2, busy=True),
        _running(cluster, "gpu", 0, busy=False, idle_s=idle_s + 1),
    ]
    reply = _scheduled(cluster, instances=there)
    assert sorted(end.instance_type for end in reply.to_terminate) == ["cpu", "gpu", "spot"]
    assert not reply.to_launch


# ---------------------------------------------------------------- what starts on a node


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node's home folder: our Python, and in the place of Ray who writes down how it was started."""
    bin_folder = tmp_path / "venv" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "python").symlink_to(sys._base_executable)  # type: ignore[attr-defined]
    ray = bin_folder / "ray"
    ray.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/started\nenv -0 > {tmp_path}/environment\n')
    ray.chmod(0o755)
    return tmp_path


def _start(home: Path, commands: Sequence[str], labels: Mapping[str, str] | None) -> None:
    """Runs the commands as the autoscaler has them run, over SSH, on a node with these labels."""
    told = {} if labels is None else {LABELS: dict(labels)}
    for command in with_envs(list(commands), {"RAY_HEAD_IP": "10.0.0.1"}):
        line = f"export {THREADS}=1 && ({_with_environment_variables(command, told)})"
        environment = {"HOME": str(home), "PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run(["bash", "-c", line], env=environment, cwd=home, check=True, capture_output=True)


def _found(home: Path) -> dict[str, str]:
    pairs = (home / "environment").read_text().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)


@pytest.mark.parametrize("what", ["head", "worker"])
@pytest.mark.parametrize("name", FILES)
def test_every_node_starts_with_our_settings_in_token_mode_and_knows_its_region(
    name: str, what: str, home: Path
) -> None:
    file = said(name)
    labels = file.get("available_node_types", {}).get("gpu", {}).get("labels")
    if labels is None:
        (home / "labels.json").write_text('{"region": "eu-de", "pool": "gpu"}')
    (home / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(file))
    _start(home, file[f"{what}_start_ray_commands"], labels)
    environment = _found(home)
    # Which machines may come is known where commands run that ask for them; the head itself does no work.
    may_come = {kind["labels"]["machine"] for kind in file.get("available_node_types", {}).values()}
    may_come -= {file.get("available_node_types", {}).get("head", {}).get("labels", {}).get("machine")}
    assert node.machines(environment) == (may_come if what == "head" else set())
    assert head.of_nodes().items() <= environment.items()
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["MLOPS_REGION"] == json.loads(environment[LABELS])["region"]
    assert not environment.keys() & {THREADS, *head.OF_ONE_MACHINE}
    assert environment["PATH"].split(os.pathsep)[0] == str(home / "venv" / "bin")
    stopped, started = (home / "started").read_text().splitlines()
    assert stopped == "stop"
    where = {"head": "--head", "worker": "--address=10.0.0.1:6379"}[what]
    assert started.startswith(f"start {where}")
    assert ("--autoscaling-config=~/ray_bootstrap_config.yaml" in started) == (what == "head")
    # The autoscaler says the resources of a cloud's nodes, and of no others.
    assert ("--num-cpus=0" in started) == (what == "head" and name == "onpremise")


def test_all_that_serving_fast_needs_is_set_on_nodes_and_their_address_is_not_that_of_loopback() -> None:
    assert head.SETTINGS.keys() - head.OF_ONE_MACHINE <= head.of_nodes().keys()
    changed = {name for name, value in head.of_nodes().items() if head.SETTINGS.get(name) != value}
    assert changed == {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "RAY_SERVE_HAPROXY_LOG_TARGET"}


def test_a_machine_that_does_not_say_where_it_stands_does_not_join(home: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        _start(home, said("onpremise")["worker_start_ray_commands"], None)
    assert (home / "started").read_text().splitlines() == ["stop"]


# ---------------------------------------------------------------- what is installed


@pytest.mark.parametrize("name", FILES)
def test_nodes_install_what_the_lock_says_by_the_lines_of_the_makefile(name: str) -> None:
    commands = " ".join(said(name)["setup_commands"])
    make = (ROOT / "Makefile").read_text()
    for flags in ("--require-hashes --only-binary :all: -r", "--no-deps --no-build-isolation"):
        assert flags in commands
        assert flags in make
    dockerfile = (ROOT / "configs" / "kuberay" / "Dockerfile").read_text()
    assert "--require-hashes --only-binary :all: -r" in dockerfile


def test_what_is_copied_makes_the_whole_package_without_a_way_out(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for remote, local in said("aws")["file_mounts"].items():
        if remote.startswith("~/source/"):
            target = source / remote.removeprefix("~/source/")
            target.parent.mkdir(exist_ok=True)
            target.symlink_to(ROOT / local)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheel = ["wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*pip, *wheel, str(source)], check=True, capture_output=True)
    (made,) = tmp_path.glob("*.whl")
    installed = set(zipfile.ZipFile(made).namelist())
    package = ROOT / "mlops_ray"
    needed = {p for pattern in ("*.py", "*.html", "*.gz", "*.js") for p in package.rglob(pattern)}
    assert {str(path.relative_to(ROOT)) for path in needed} <= installed


@pytest.mark.parametrize("name", FILES)
def test_the_folder_of_the_state_is_mounted_once_however_often_nodes_are_set_up(
    name: str, tmp_path: Path
) -> None:
    for program, does in {"mountpoint": 'exit "$STATUS"', "sudo": 'echo "$1" >> "$CALLS"'}.items():
        (tmp_path / program).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / program).chmod(0o700)

    def called(status: int) -> set[str]:
        """What is asked of root where `mountpoint` ends so."""
        (calls := tmp_path / "calls").write_text("")
        path = f"{tmp_path}:{os.environ['PATH']}"
        env = os.environ | {"PATH": path, "STATUS": str(status), "CALLS": str(calls)}
        subprocess.run(["bash", "-c", _mounts(name)], env=env, check=True)
        return set(calls.read_text().split())

    assert called(0) == set()
    assert called(1) >= {"mount"}


def _mounts(name: str) -> str:
    """The command that is to be filled in, and is commented out."""
    _, _, commands = FILES[name].read_text().partition("\nsetup_commands:\n")
    lines = (line.replace("# ", "", 1) for line in commands.splitlines() if re.match("  # (- |  )", line))
    (command,) = yaml.safe_load("\n".join(lines))
    return str(command)


# ---------------------------------------------------------------- what may not drift


def test_the_clouds_files_and_the_manifests_agree_in_all_but_what_a_cloud_calls_its_own() -> None:
    aws, gcp, onpremise = (said(name) for name in FILES)
    for key in ("max_workers", "idle_timeout_minutes", "upscaling_speed", "head_node_type", "rsync_exclude"):
        assert aws[key] == gcp[key]
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert aws[key] == gcp[key]
    own = ("node_config", "labels")
    for pool, kind in aws["available_node_types"].items():
        other = gcp["available_node_types"][pool]
        assert {k: v for k, v in kind.items() if k not in own} == {
            k: v for k, v in other.items() if k not in own
        }
        assert kind["labels"]["ray.io/market-type"] == other["labels"]["ray.io/market-type"]
    for file in (gcp, onpremise):
        assert aws["file_mounts"].items() <= file["file_mounts"].items()
    pip = [line for line in aws["setup_commands"] if "-m pip" in line or "-m venv" in line]
    assert pip == [line for line in gcp["setup_commands"] if "-m pip" in line or "-m venv" in line]

    assert aws["idle_timeout_minutes"] * 60 == kuberay.IDLE_S
    for pool, kind in kuberay.POOLS.items():
        other = aws["available_node_types"][pool]
        assert (kind.least, kind.most) == (other["min_workers"], other["max_workers"])
        assert (kind.gpus, kind.priority) == (other["resources"].get("GPU", 0), other.get("priority", 0))
        assert kind.cpus == other["resources"]["CPU"] - 1
    assert sum(kind.most for kind in kuberay.POOLS.values()) == aws["max_workers"]


@pytest.mark.parametrize("name", FILES)
def test_no_secret_stands_in_the_file(name: str) -> None:
    text = FILES[name].read_text()
    assert "RAY_AUTH_TOKEN" not in text
    assert "PRIVATE KEY" not in text
    # Whatever is long and has no meaning might be one.
    words = (word for word in text.replace("/", " ").replace(":", " ").split() if len(word) > 30)
    assert all(not word.isalnum() for word in words)


def test_the_page_has_callers_get_a_key_on_the_head_before_it_has_them_let_in() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    shown = re.search(
        r'^ray exec cluster\.yaml "(\S+) key add \S+ /shared/project\.yaml --role \w+"$', page, re.M
    )
    assert shown
    assert f"-m venv {shown[1].removesuffix('/bin/mlops-ray')}" in FILES["aws"].read_text()
    assert shown.start() < page.index("-- mlops-ray run /shared/project.yaml")
