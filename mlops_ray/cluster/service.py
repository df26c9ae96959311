"""A project's service on this machine: brought up by `run`, looked at, taken down."""

import contextlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlops_ray import audit, keys
from mlops_ray.cluster import front, interrupt, joined, local, ports
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.cluster.stages import Progress, Stages, alone
from mlops_ray.config import Project
from mlops_ray.cost import holds
from mlops_ray.data import error_log, prediction_log
from mlops_ray.errors import ClusterError, MlopsError, StorageError
from mlops_ray.instants import DAY_S
from mlops_ray.policy import allowed_regions, withheld
from mlops_ray.serving import heartbeats
from mlops_ray.storage import Storage

if TYPE_CHECKING:
    from mlops_ray.cluster.intake import Intake
    from mlops_ray.cluster.pipeline import Pipeline

#: A first request may meet a replica that is still warming up.
REQUEST_TIMEOUT_S = 30.0
#: Where the reconciler says what it sees of a challenger (serving.record, which asks for more imports).
SEEN = "release/seen"
#: Where alerts read to which address their links lead (monitoring.alerting), and `status` that what runs was
#: live once.
ADDRESS = "address.json"
#: Where the loop says what it decided (cluster.loop, as above).
LOOP = "loop"
#: How what reads new data calls the place where the service reads it.
ONLINE = "online store"
#: A status that takes longer is no status.
STATUS_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Live:
    """What a run ended with: the champion that is live, and what was trained, which may have been refused.

    `metric` decided; nothing was `trained` where what was live before is served again. `answer` is the reply
    to the first request, `curl` a line that asks for it again from this machine, with "…" for values that
    people may not see; `ours` says whether this run started the cluster, `notes` are for whoever started it,
    `plan` is why replicas have their size, where that was worked out (`sizing.sized`), and `profit` says what
    a version that was pushed earns.
    """

    url: str
    grpc: str
    model: str
    version: int
    dashboard: str
    metric: str
    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    trained: dict[str, Any] | None
    seconds: dict[str, float]
    unchanged: list[str]
    answer: dict[str, Any]
    curl: str
    ours: bool
    notes: list[str]
    plan: dict[str, Any] | None
    profit: str

    def to_json(self) -> dict[str, Any]:
        """The line that `run --json` and `serve --json` end with."""
        return {
            "url": self.url,
            "grpc": self.grpc,
            "model": self.model,
            "version": self.version,
            "dashboard": self.dashboard,
            "curl": self.curl,
            "metrics": self.metrics,
            "baselines": self.baselines,
            "refused": self.trained["refused"] if self.trained else [],
            "seconds": self.seconds,
            "plan": self.plan,
            "profit": self.profit,
        }


@contextlib.contextmanager
def running(
    project: Project, storage: Storage, progress: Progress, *, detach: bool, train: bool = True
) -> Iterator[Live]:
    """Everything that is needed to have the model live; what is unchanged is not done again.

    Without `train` the champion is served as it is. At the end of the block the cluster is stopped if this
    run started it, unless `detach`; after an error or Ctrl-C it is stopped in any case.
    """
    front.require_safe(project, storage)
    with _working(project, storage, progress, whole=True, detach=detach) as (pipeline, connected, ours, lock):
        if not train:
            _require_champion(pipeline)
        live = _bring_up(pipeline, connected(), ours, train=train)
        # A service that runs holds nobody up: another run may bring it up to date.
        lock.close()
        if detach:
            _leave_cluster(storage, stop=False)
        yield live


def ingest(project: Project, storage: Storage, progress: Progress) -> dict[str, dict[str, Any]]:
    """Brings every source into its history; returns what became of its rows, and if it was `unchanged`.

    On the cluster of this storage, or on one that is started for it and stopped again; without any where
    nothing changed.
    """
    with _working(project, storage, progress) as (pipeline, connected, *_):
        pipeline.intake.connect = connected
        pipeline.ingest()
        unchanged = pipeline.stages.unchanged
        return {
            name: {
                **storage.read_json("reports", f"validation-{name}.json"),
                "unchanged": f"ingest {name}" in unchanged,
            }
            for name in project.sources
        }


def train(
    project: Project, storage: Storage, progress: Progress, *, resume: bool = False, like: str | None = None
) -> dict[str, Any]:
    """Trains a version and registers it; what came of it.

    `resume` goes on with a search that was killed; `like` names a run: what won in the runs likest to it is
    tried first. On the cluster of this storage, or on one that is started for it and stopped again.
    """
    with _working(project, storage, progress, whole=True) as (pipeline, connected, *_):
        # Whatever cannot be is said before a cluster is started.
        run_id = pipeline.trainer.killed() if resume else None
        start = pipeline.trainer.won(like) if like is not None else []
        connected()
        pipeline.prepare()
        return pipeline.train(pipeline.build(pipeline.ingest()), run_id=run_id, start=start)


def retrained(project: Project, storage: Storage, progress: Progress) -> dict[str, Any]:
    """Trains again on the cluster of this storage and pushes what passes its gate; waits for other runs.

    `{"outcome", "version", "said"}`, the outcome `releasing` of a version that is pushed, `unchanged` where
    there was nothing new to learn, and `refused` of one that is not to go live.
    """
    with _working(project, storage, progress, whole=True, wait=True) as (pipeline, connected, ours, _):
        if ours:
            raise ClusterError("the service was stopped meanwhile")
        connected()
        pipeline.prepare()
        return pushed_again(pipeline, pipeline.train(pipeline.build(pipeline.ingest())))


def pushed_again(pipeline: "Pipeline", trained: dict[str, Any]) -> dict[str, Any]:
    """Pushes what a retraining has made, unless what was seen meanwhile forbids it; as `retrained` says."""
    from mlops_ray.cluster import loop

    version, refused = int(trained["version"]), "; ".join(trained["refused"])
    seen = loop.see(pipeline.storage, pipeline.project.project, time.time())
    held = f"version {version} is registered and not pushed, since"
    if not refused and seen.releasing is not None:
        # Somebody else's, which a push would end.
        refused = f"{held} version {seen.releasing} is being released"
    elif not refused and (broken := loop.faults(seen)):
        refused = f"{held} the data are not whole: {'; '.join(broken)}"
    if refused:
        return {"outcome": "refused", "version": version, "said": refused}
    if pipeline.push(trained) is None:
        said = f"nothing is new since version {version} was trained"
        return {"outcome": "unchanged", "version": version, "said": said}
    return {"outcome": "releasing", "version": version, "said": f"version {version} is pushed"}


def reproduce(project: Project, storage: Storage, progress: Progress, version: int) -> dict[str, Any]:
    """Trains a version again from its record and compares it: see `Trainer.reproduce`."""
    with _working(project, storage, progress, whole=True) as (pipeline, connected, *_):
        connected()
        return pipeline.trainer.reproduce(version)


def follow(
    project: Project, storage: Storage, progress: Progress, every_s: float
) -> Iterator[dict[str, Any]]:
    """Looks for new data again and again, and brings it to where the service reads it.

    Yields the report of each source that had news, or `{"source", "error"}` where it cannot be read; what is
    wrong with it is said once, and it is tried again. Goes on until the caller ends it.
    """
    said: dict[str, str] = {}
    with _working(project, storage, progress) as (first, connected, _, lock):
        connected()
        lock.close()
        # What was stored before may not be readable online yet.
        is_behind = True
        while True:
            with alone(storage, wait=True):
                intake = first.intake.afresh()
                found = list(_news(intake, said))
                is_behind = is_behind or any("error" not in report for report in found)
                if is_behind:
                    try:
                        first.store.materialize()
                    except MlopsError as error:
                        found += _told(intake, ONLINE, error, said)
                    else:
                        is_behind = False
                        said.pop(ONLINE, None)
            yield from found
            time.sleep(every_s)


def _news(intake: "Intake", said: dict[str, str]) -> Iterator[dict[str, Any]]:
    for name in intake.store.project.sources:
        try:
            intake.ingest(name)
        except MlopsError as error:
            yield from _told(intake, name, error, said)
            continue
        if f"ingest {name}" not in intake.stages.unchanged:
            said.pop(name, None)
            yield intake.storage.read_json("reports", f"validation-{name}.json")


def _told(intake: "Intake", name: str, error: MlopsError, said: dict[str, str]) -> Iterator[dict[str, Any]]:
    """What is wrong, unless it was said; it is an error of the log too, which others see."""
    if said.get(name) != str(error):
        said[name] = str(error)
        error_log.tell(intake.storage, intake.store.project.project, "ingest", error)
        yield {"source": name, "error": str(error)}


@contextlib.contextmanager
def reading(project: Project, storage: Storage, progress: Progress) -> Iterator["Intake"]:
    """The intake of a project's sources, on the cluster of its storage or one of its own, for the block."""
    with _working(project, storage, progress) as (pipeline, connected, *_):
        connected()
        yield pipeline.intake


@contextlib.contextmanager
def _working(
    project: Project,
    storage: Storage,
    progress: Progress,
    *,
    whole: bool = False,
    wait: bool = False,
    detach: bool = False,
) -> Iterator[tuple["Pipeline", Callable[[], LocalCluster], bool, contextlib.ExitStack]]:
    """A pipeline, what connects it to a cluster, whether that is ours, and what keeps other runs out.

    `whole` where all stages are to be run, and not the data's alone; `wait` for another run's end; `detach`
    as in `leaving`.
    """
    with contextlib.ExitStack() as lock:
        lock.enter_context(alone(storage, wait=wait))
        ours = joined.is_missing(storage)
        with interrupt.stops(storage.root if ours else None):
            pipeline = _pipeline(project, storage, progress)
            if whole:
                pipeline.require_supported()
            connected = partial(connect, project, storage, pipeline.stages, ours, front.wanted(project))
            with leaving(storage, ours=ours, detach=detach):
                yield pipeline, cache(connected), ours, lock


@contextlib.contextmanager
def leaving(storage: Storage, *, ours: bool, detach: bool = False) -> Iterator[None]:
    """Leaves the cluster when the block ends, and stops one of ours; to `detach` only after an error."""
    try:
        yield
    except (Exception, GeneratorExit):
        _leave_cluster(storage, stop=ours)
        raise
    _leave_cluster(storage, stop=ours and not detach)


def connect(
    project: Project, storage: Storage, stages: Stages, ours: bool, wanted: Mapping[str, int] | None = None
) -> LocalCluster:
    """The cluster of this storage, connected; if it is to be ours it is started, with the ports `wanted`."""
    with stages.timed("ray", lambda result: f"cluster at {result['address']}") as result:
        cluster = local.start(storage.root, ports=wanted) if ours else _found(project, storage)
        local.connect(cluster)
        result["address"] = cluster.address
    from mlops_ray import placement

    placement.require(project.policies)
    return cluster


def _found(project: Project, storage: Storage) -> LocalCluster:
    found = joined.found(project, storage)
    if found is None:
        raise ClusterError("the cluster has just been stopped; run again")
    return found


def _pipeline(project: Project, storage: Storage, progress: Progress) -> "Pipeline":
    # Ray reads these when it is imported, which the pipeline does.
    joined.settle()
    from mlops_ray.cluster.pipeline import Pipeline

    return Pipeline(project, storage, progress)


def _bring_up(pipeline: "Pipeline", cluster: LocalCluster, ours: bool, *, train: bool) -> Live:
    """Has what is trained released, or what is champion already, and the service up."""
    from mlops_ray.cluster import loop, looper, meter, profitable, releases, sizing
    from mlops_ray.serving import deploy, record

    project, storage = pipeline.project, pipeline.storage
    joined.require_serving(project, cluster)
    deploy.require_ours(storage)
    front.require_token(project, cluster)
    pipeline.prepare()
    key_file = keys.ensure_local(storage)
    trained = pipeline.train(pipeline.build(pipeline.ingest())) if train else None
    pushed = None
    if trained is not None:
        deploy.settle(project, storage)
        pushed = pipeline.push(trained)
    sized = sizing.sized(project, storage, lambda: looper.machines(project))
    url = pipeline.serve(cluster, sized.project)
    notes = front.apply(project, cluster) + loop.notes(project) + meter.notes(project) + sized.notes
    if pushed is not None:
        with pipeline.stages.timed("release", lambda r: r["said"]) as result:
            document = releases.followed(
                storage, project.project, pipeline.progress, pushed, until_loaded=True
            )
            found = releases.outcome(document, pushed)
            result["said"] = said = f"version {pushed} is {found['state']}: {found['reason']}".rstrip(": ")
        notes += [] if found["state"] == "champion" else [f"{said}; mlops-ray status tells how it goes on"]
    champion = record.read(storage, project.project)["champion"]
    request = pipeline.example_request()
    with pipeline.stages.timed("first prediction", lambda r: r["said"]) as result:
        answer = predict(url, project.project, request, storage)
        # It is a row that was read: people get to see it as far as they may.
        request = withheld(request, project.sources[project.target.source])
        result["said"] = f"{request} → {answer['outputs'][0]['data'][0]:.4g}"
    called = front.url(project, cluster)
    _tell_live(storage, cluster, project.serving.listen.url or called)
    return Live(
        url=called,
        grpc=f"{urlsplit(called).hostname}:{project.serving.listen.grpc_port or cluster.grpc_port}",
        model=project.project,
        version=int(champion["version"]),
        dashboard=f"{called}/dashboard",
        metric=project.training.metric,
        metrics=champion["metrics"],
        baselines=champion["baselines"],
        trained=trained,
        seconds=pipeline.stages.seconds,
        unchanged=pipeline.stages.unchanged,
        answer=answer,
        curl=curl_line(url, project.project, request, key_file),
        ours=ours,
        notes=notes,
        plan=sized.plan,
        profit="" if pushed is None else profitable.said(storage, project.project, pushed),
    )


def _require_champion(pipeline: "Pipeline") -> None:
    """Raises `StorageError` where there is nothing to serve; what the registry alone knows of is pushed."""
    from mlops_ray.cluster import releases
    from mlops_ray.serving import deploy, record

    project, storage = pipeline.project, pipeline.storage
    if record.read(storage, project.project).get("champion"):
        return
    version = pipeline.registry.champion(project.project)
    if version is None:
        raise StorageError(f"{project.project!r} has no champion to serve; mlops-ray run trains one")
    deploy.settle(project, storage)
    releases.push(project, storage, version)


def predict(url: str, model: str, request: dict[str, Any], storage: Storage) -> dict[str, Any]:
    """The service's reply to one row, asked for as any client would."""
    body = json.dumps(infer_body(request)).encode()
    headers = {"Content-Type": "application/json"}
    return _ask(f"{url}/v2/models/{model}/infer", storage, REQUEST_TIMEOUT_S, data=body, headers=headers)


def infer_body(request: dict[str, Any]) -> dict[str, Any]:
    """One row in the form of the Open Inference Protocol.

    >>> infer_body({"site": "a"})
    {'inputs': [{'name': 'site', 'datatype': 'BYTES', 'shape': [1], 'data': ['a']}]}
    """
    return {
        "inputs": [
            {"name": name, "datatype": _datatype(value), "shape": [1], "data": [value]}
            for name, value in request.items()
        ]
    }


def _datatype(value: Any) -> str:
    names = {bool: "BOOL", int: "INT64", float: "FP64"}
    return names.get(type(value), "BYTES")


def curl_line(url: str, model: str, request: dict[str, Any], key_file: str) -> str:
    """A line for a shell that asks the service for one prediction."""
    body = json.dumps(infer_body(request), separators=(",", ":"), ensure_ascii=False)
    return (
        f'curl -s {url}/v2/models/{model}/infer -H "Authorization: Bearer $(cat {key_file})" '
        f"-H 'Content-Type: application/json' -d '{body}'"
    )


def status(project: Project, storage: Storage) -> dict[str, Any]:
    """What is live: `{"state": "down"}`, or the service's address and the documents of its models.

    `starting` is what has not answered yet, `unreachable` what was live and does not answer now. `wrong` are
    sentences that say what is not as it should be.
    """
    from mlops_ray.cluster import evidence, jobs, wrongs

    cluster = joined.found(project, storage)
    if cluster is None:
        return {"state": "down", "model": project.project}
    url, inside = front.url(project, cluster), f"http://{cluster.host}:{cluster.http_port}"
    try:
        document = _ask(f"{inside}/dashboard/data.json", storage, STATUS_TIMEOUT_S)
    except ClusterError as error:
        return {"model": project.project, "url": url, **_silent(storage, cluster, error)}
    names = [model["name"] for model in document["models"]]
    token = jobs.token_of(cluster.environment or os.environ)
    own = {project.project: allowed_regions(project.policies)}
    places = evidence.places(names, {**evidence.recorded(storage), **own}, cluster.dashboard, token)
    for model in document["models"]:
        model["places"] = places[model["name"]]
        if model["challenger"]:
            seen = storage.read_json(SEEN, f"{model['name']}.json") or {}
            model["challenger"]["seen"] = seen if seen.get("turn") == model["challenger"]["turn"] else None
        model["loop"] = storage.read_json(LOOP, f"{model['name']}.json")
        model["cost"] = _cost(storage, model["name"])
        model["lost_lately"] = prediction_log.lost(storage, model["name"], time.time() - DAY_S)
    is_quiet = heartbeats.silent_s(storage) > heartbeats.SILENT_S
    told = {
        "state": "live",
        "model": project.project,
        "said": "nobody looks for pushes; mlops-ray serve starts who does" if is_quiet else "",
        "url": url,
        "dashboard": f"{url}/dashboard",
        **document,
    }
    return told | {"wrong": wrongs.wrong(told, wrongs.lately(storage))}


def _tell_live(storage: Storage, cluster: LocalCluster, url: str) -> None:
    storage.write_json({"url": url, "cluster": cluster.marker or cluster.address}, ADDRESS)


def _silent(storage: Storage, cluster: LocalCluster, error: ClusterError) -> dict[str, Any]:
    """What is to be said of a service that does not answer: it starts, or something is wrong with it."""
    from mlops_ray.cluster import wrongs

    told = storage.read_json(ADDRESS) or {}
    if told.get("cluster") != (cluster.marker or cluster.address):
        return {"state": "starting", "said": str(error)}
    said = (
        f"the service was live, and does not answer now ({error}); a front end that has died is replaced"
        " within seconds: where it is not, stop what is left by mlops-ray down, and start it by"
        " mlops-ray serve"
    )
    found = {"state": "unreachable", "said": said, "models": []}
    return found | {"wrong": wrongs.wrong(found, wrongs.lately(storage))}


def _cost(storage: Storage, name: str) -> dict[str, Any] | None:
    """What 1,000 predictions cost, what of the day's budget is spent, and why more is held back, if it is;
    the day of the oldest price by which it was counted, and what is to be known of prices.

    `None` where no project says what machines cost.
    """
    try:
        found, hold = (storage.read_json(folder, f"{name}.json") for folder in (holds.FOLDER, holds.HOLDS))
    except StorageError:
        return None
    if holds.checked(found) is None:
        return None
    told = {key: found[key] for key in ("at", "per_1000", "budget")}
    told |= {"oldest": found.get("oldest"), "notes": found.get("notes", [])}
    return told | {"currency": found["total"]["currency"], "held": holds.why(hold, time.time())}


def listening(project: Project, storage: Storage) -> list[dict[str, str]]:
    """Every port of what runs, and what guards it; empty where nothing does."""
    cluster = joined.found(project, storage)
    return [port.to_json() for port in ports.table(project, cluster)] if cluster is not None else []


def down(project: Project, storage: Storage) -> bool:
    """Stops the project's service and its cluster, which a job only leaves; `False` if there was none.

    Raises `ClusterError` in a job on a cluster that runs the service of another storage, which goes on.
    """
    cluster = joined.found(project, storage) if joined.address() else None
    if cluster is None or cluster.marker:
        return local.stop(storage.root)
    from ray import serve

    from mlops_ray.serving import deploy

    deploy.require_ours(storage)
    runs = bool(serve.status().applications)
    serve.shutdown()  # type: ignore[no-untyped-call]
    # The cluster stays: what is served on it next is not live before it says so.
    storage.root.joinpath(ADDRESS).unlink(missing_ok=True)
    if runs:
        about = {"cluster": cluster.address}
        audit.append(storage, "the service was stopped", audit.who(), about, is_done=True)
    return runs


def _ask(url: str, storage: Storage, timeout_s: float, **request: Any) -> dict[str, Any]:
    return dict(json.loads(fetched(url, storage, timeout_s, **request)))


def fetched(url: str, storage: Storage, timeout_s: float, **request: Any) -> bytes:
    """What our own service answers, asked with the key of this machine; raises `ClusterError`."""
    key = storage.path("local.key").read_text().strip()
    headers = {"Authorization": f"Bearer {key}", **request.pop("headers", {})}
    try:
        wanted = urllib.request.Request(url, headers=headers, **request)  # noqa: S310 - our own http address
        with urllib.request.urlopen(wanted, timeout=timeout_s) as reply:  # noqa: S310
            return bytes(reply.read())
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")[:500]
        raise ClusterError(f"{url} answered {error.code}: {said}") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise ClusterError(f"{url} does not answer: {error}") from error


def _leave_cluster(storage: Storage, *, stop: bool) -> None:
    import ray

    ray.shutdown()
    if stop:
        local.stop(storage.root)
