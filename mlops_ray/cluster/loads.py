"""What a replica of a model bears on this machine: the command `loadtest`.

Replicas of their own are loaded, beside those that are live: at another address, for a key that nobody else
knows, with a prediction log that is thrown away and no monitor, so that nothing made up is taken for traffic.
What they share with those that are live is the machine.
"""

import contextlib
import http.client
import itertools
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import polars as pl
import psutil

from mlops_ray import keys
from mlops_ray.client import columns
from mlops_ray.cluster import joined, scoring, service, sizing
from mlops_ray.cluster.costs import CAPACITY
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.cluster.meter import MACHINE
from mlops_ray.cluster.stages import Progress, Stages
from mlops_ray.config import Project
from mlops_ray.cost.model import Capacity
from mlops_ray.data import prediction_log
from mlops_ray.data.prediction_log import ASKED
from mlops_ray.errors import ClusterError, DataError, ServiceError, StorageError
from mlops_ray.features.definitions import FeatureSet
from mlops_ray.features.history import read
from mlops_ray.features.online import OnlineStore
from mlops_ray.features.shelves import online_location
from mlops_ray.policy import machine_only, require_here, require_stores
from mlops_ray.registry import estimator, signing
from mlops_ray.registry import package as packages
from mlops_ray.registry.registry import Registry
from mlops_ray.serving import record
from mlops_ray.serving.loadtest import Found, Objectives, Probe, search
from mlops_ray.serving.offering import Arrivals, Offering, request
from mlops_ray.storage import Storage, locked

#: What a load test needs for as long as it runs lies there.
ASIDE, LOCK = "loadtest", ".lock"
#: What the replicas under load are called besides the project's name, which has no dot.
SUFFIX = ".loadtest"
#: The type of a machine that nobody named.
UNNAMED = "local"
#: Different requests: enough that the features of one are not at hand from the last time.
REQUESTS = 200
#: How old rows of the prediction log may be: the younger, the more like those that will come.
DAYS = 7
#: Warm-up: so long, with so many callers for each replica, who together get about all that it can do; and the
#: share of that with which the search begins.
WARM_UP_S, CALLERS, FIRST = 5.0, 8, 0.5
#: How long a request may take before that, and how much is told of what it was answered.
PATIENCE_S, MOST_SAID = 30.0, 300


@dataclass(frozen=True)
class Size:
    """What a replica asks of Ray, and the most rows of its batches."""

    cpu: float
    gpu: float
    max_rows: int

    def of(self, project: Project) -> Project:
        """The project, with replicas of this size."""
        serving = project.serving
        resources = serving.resources.model_copy(update={"cpu": self.cpu, "gpu": self.gpu})
        batching = serving.batching.model_copy(update={"max_rows": self.max_rows})
        serving = serving.model_copy(update={"resources": resources, "batching": batching})
        return project.model_copy(update={"serving": serving})

    def __str__(self) -> str:
        return f"cpu {self.cpu:g}{f', gpu {self.gpu:g}' if self.gpu else ''}, batches of {self.max_rows}"


@dataclass(frozen=True)
class Wanted:
    """What is measured: sizes, by default the project's own, by requests of so many `rows`.

    So many `replicas` are loaded together, and what is told is of one. `rate_from` is the first rate, in
    requests/s of all; by default that is found. Their machines are of the type `machine`, where one is named.
    """

    cpus: tuple[float, ...] = ()
    max_rows: tuple[int, ...] = ()
    rows: int = 1
    replicas: int = 1
    version: int | None = None
    rate_from: float | None = None
    arrivals: Arrivals = "poisson"
    machine: str | None = None

    def sizes(self, project: Project) -> list[Size]:
        own, batching = project.serving.resources, project.serving.batching
        pairs = itertools.product(self.cpus or (own.cpu,), self.max_rows or (batching.max_rows,))
        return [Size(cpu, own.gpu, rows) for cpu, rows in pairs]


def loadtest(project: Project, storage: Storage, progress: Progress, wanted: Wanted) -> dict[str, Any]:
    """Measures what one replica of the champion, or of another version, bears, for each size.

    `{"model", "version", "capacities", "files", "notes"}`; each record is written, and kept in the registry,
    as soon as it is made. On the cluster of this storage, or on one that is started for it and stopped again.
    Raises `ServiceError` where no rate holds, `ClusterError` where a size does not fit beside what runs or
    the cluster cannot serve, `DataError` where there is nothing to ask for, and `PolicyError` where rows may
    not be on this machine.
    """
    require_here(project.policies)
    require_stores(project)
    with _alone(storage):
        entry = scoring.entry(project, storage, progress, wanted.version)
        with scoring.connected(project, storage, Stages(storage, progress)) as cluster:
            from mlops_ray.serving import deploy

            joined.require_lending(project, cluster)
            deploy.require_ours(storage)
            named = project.serving.resources.machine
            machine = wanted.machine or (None if named == sizing.AUTO else named)
            if machine is not None:
                from mlops_ray.cluster import looper

                project = sizing.on(project, machine, looper.machines(project))
            bodies = asked(project, storage, progress, entry, wanted.rows)
            return LoadTest(project, storage, progress, cluster, entry, wanted).run(bodies)


@contextlib.contextmanager
def _alone(storage: Storage) -> Iterator[None]:
    """Keeps other load tests out, and takes away what one left that was killed."""
    lock = locked(storage.path(ASIDE, LOCK))
    if lock is None:
        raise StorageError(
            "another load test runs, and each would measure the other; wait for it, or stop it"
        )
    with lock:
        for left in aside(storage):
            if left.is_symlink() or left.is_file():
                left.unlink()
            else:
                shutil.rmtree(left)
        yield


def aside(storage: Storage) -> list[Path]:
    """What load tests have laid aside: rows that they ask for, and what they are answered."""
    return sorted(storage.root.joinpath(ASIDE).glob("tmp*"))


def is_running(storage: Storage) -> bool:
    """Whether there is a load test, which may hold rows before it lays any aside."""
    lock = storage.root / ASIDE / LOCK
    if not lock.exists():
        return False
    with locked(lock) or contextlib.nullcontext() as free:
        return free is None


def clear(storage: Storage) -> None:
    """Takes away what a load test left that was killed; what one needs that runs stays."""
    if aside(storage):
        with contextlib.suppress(StorageError), _alone(storage):
            pass


# ---------------------------------------------------------------- what is asked


def asked(
    project: Project, storage: Storage, progress: Progress, entry: Mapping[str, Any], rows: int
) -> list[bytes]:
    """Bodies of requests for so many rows each: those of the prediction log, else of the target's history."""
    package = packages.read(
        storage.root / entry["package"],
        digest=entry["digest"],
        trusted=signing.trusted(project, storage),
        types=estimator.allowed(project),
    )
    features, most = package.feature_set, REQUESTS * rows
    bounds = OnlineStore(online_location(project, storage)).bounds(features)
    found = _logged(storage, project.project, entry["version"], features, bounds, most)
    if found.is_empty():
        found = _of_history(project, storage, progress, features, bounds, most)
    if found.is_empty():
        raise DataError(f"there is no row to ask {project.project!r} for: its histories are empty")
    # Where there are few they come again.
    found = pl.concat([found] * -(-most // found.height)).head(most)
    return [body(found.slice(at, rows)) for at in range(0, most, rows)]


def body(rows: pl.DataFrame) -> bytes:
    """What a client sends to ask for rows."""
    return orjson.dumps({"inputs": columns(rows)})


Bounds = tuple[datetime, datetime] | None


def _logged(
    storage: Storage, name: str, version: str, features: FeatureSet, bounds: Bounds, most: int
) -> pl.DataFrame:
    """What callers asked of late that can be answered now; empty where the log does not hold all of it."""
    now = datetime.now(UTC)
    since = (now - timedelta(days=DAYS)).timestamp()
    rows = prediction_log.sample(storage, name, version, since, now.timestamp(), most)
    names = {f"{ASKED}{name}": name for name in features.request.names}
    if not names.keys() <= set(rows.columns):
        return pl.DataFrame()
    rows = rows.select(pl.col(column).alias(name) for column, name in names.items())
    return rows if bounds is None else rows.filter(pl.col(features.time).is_between(*bounds))


def _of_history(
    project: Project, storage: Storage, progress: Progress, features: FeatureSet, bounds: Bounds, most: int
) -> pl.DataFrame:
    """Rows of the target's source, as if they were asked for at the last moment that can be answered."""
    snapshot = service._pipeline(project, storage, progress).snapshots[project.target.source]
    found = pl.DataFrame()
    for bucket in snapshot.buckets:
        rows = read(snapshot, [bucket])
        rows = rows.select(name for name in features.request.names if name in rows.columns)
        found = pl.concat([found, rows.unique(maintain_order=True)], how="diagonal").head(most)
    return found.with_columns(pl.lit(bounds[1] if bounds else datetime.now(UTC)).alias(features.time))


# ---------------------------------------------------------------- what is measured


@dataclass(frozen=True)
class LoadTest:
    """A load test of a release's `entry` on the connected cluster."""

    project: Project
    storage: Storage
    progress: Progress
    cluster: LocalCluster
    entry: Mapping[str, Any]
    wanted: Wanted

    def run(self, bodies: Sequence[bytes]) -> dict[str, Any]:
        """What `loadtest` finds, with these bodies of requests."""
        sizes, stages = self.wanted.sizes(self.project), Stages(self.storage, self.progress)
        capacities, files, notes = [], [], []
        for size in sizes:
            with stages.timed(f"load {size}", lambda result: str(result["said"])) as result:
                found, machine = self._search(size, bodies)
                capacity = self._capacity(size, found, machine)
                files.append(str(self._keep(capacity)))
                capacities.append(capacity.to_json())
                notes += [f"{size}: {found.note}"] if found.note else []
                result["said"] = f"{capacity.rate:.4g} requests/s a replica, p99 {capacity.p99_ms:g} ms"
        count = self.wanted.replicas
        if count * max(size.cpu for size in sizes) < (psutil.cpu_count() or 1):
            notes.append(
                f"loaded were {count} at a time, and the rest of this machine was free for them; --replicas N"
                " loads as many as are to share it"
            )
        about = {"model": self.project.project, "version": self.entry["version"]}
        return {**about, "capacities": capacities, "files": files, "notes": notes}

    def _search(self, size: Size, bodies: Sequence[bytes]) -> tuple[Found, str]:
        """The highest rate of all replicas of a size together, and on which type of machine they run."""
        slo, wanted = self.project.serving.slo, self.wanted
        allowed = Objectives(slo.p99_ms, slo.error_rate)
        with (
            self._replicas(size) as (url, headers),
            Offering(url, answered(url, headers, bodies), allowed, wanted.arrivals) as offering,
        ):
            self.progress.update("warms up")
            first = FIRST * offering.closed(CALLERS * wanted.replicas, WARM_UP_S)
            machine = _machine(self.project)
            return search(offering.offer, wanted.rate_from or first, allowed, self._say), machine

    def _say(self, probe: Probe) -> None:
        slo = self.project.serving.slo
        seen = f"p99 {probe.p99_ms:g} ms of {slo.p99_ms:g} allowed, {probe.error_rate:.2%} failed"
        state = "too near to tell" if probe.state == "unclear" else probe.state
        self.progress.update(f"{probe.rate:.4g} requests/s: {seen}: {state}")

    @contextlib.contextmanager
    def _replicas(self, size: Size) -> Iterator[tuple[str, dict[str, str]]]:
        """The replicas of a size, for the block: where they predict, and the headers of who asks."""
        from mlops_ray.serving import deploy, replica

        # One that a kill left behind holds what this one needs; there is no other load test now.
        deploy.forget(f"{self.project.project}{SUFFIX}")
        selector = deploy.where(self.project, self.storage)
        _require_room(size, self.wanted.replicas, selector | self.project.serving.resources.labels)
        name = f"{self.project.project}{SUFFIX}"
        with self._aside(name) as aside:
            key = keys.add(aside, "loadtest", "predict")
            with deploy.lent(
                name,
                replica.route(name),
                lambda: replica.probe(
                    size.of(self.project),
                    self.storage,
                    aside,
                    name,
                    self.wanted.replicas,
                    selector,
                    machine_only(self.project),
                ),
                http_port=self.cluster.http_port,
                host=joined.binds(self.project, self.cluster),
                reached=self.cluster.host,
            ) as url:
                headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
                yield f"{url}/invocations", headers

    @contextlib.contextmanager
    def _aside(self, name: str) -> Iterator[Storage]:
        """A storage for the block in which the version is champion of a model of this name."""
        near = self.storage.path(ASIDE, LOCK).parent
        with tempfile.TemporaryDirectory(dir=near, ignore_cleanup_errors=True) as folder:
            aside = Storage.open(folder)
            # Replicas read the storage alone.
            shutil.copytree(self.storage.root / self.entry["package"], aside.root / "package", symlinks=True)
            record.write(aside, record.new(name) | {"champion": {**self.entry, "package": "package"}})
            yield aside

    def _capacity(self, size: Size, found: Found, machine: str) -> Capacity:
        each, slo = 1 / self.wanted.replicas, self.project.serving.slo
        return Capacity(
            model=self.project.project,
            version=self.entry["version"],
            machine=machine,
            cpu=size.cpu,
            gpu=size.gpu,
            max_rows=size.max_rows,
            rate=found.best.rate * each,
            high=found.high * each,
            rows=self.wanted.rows,
            p99_ms=found.best.p99_ms,
            error_rate=found.best.error_rate,
            slo={"p99_ms": slo.p99_ms, "error_rate": slo.error_rate},
            on=_processor(),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _keep(self, capacity: Capacity) -> Path:
        """Writes a record in the place of the last one of its machine and size; the registry keeps it too."""
        size = f"cpu{capacity.cpu:g}-gpu{capacity.gpu:g}-batch{capacity.max_rows}-rows{capacity.rows}"
        key, version = f"{capacity.machine}-{size}", int(capacity.version)
        place = (CAPACITY, capacity.model, f"{version}-{key}.json")
        self.storage.write_json(capacity.to_json(), *place)
        registry(self.project, self.storage).set_capacity(capacity.model, version, key, capacity)
        return self.storage.path(*place)


def _require_room(size: Size, count: int, selector: Mapping[str, str]) -> None:
    """Raises `ClusterError` where the replicas would wait for ever for what others hold."""
    from mlops_ray import placement
    from mlops_ray.cluster import looper

    room = looper.room(size.cpu, size.gpu, selector)
    asked = {"CPU": size.cpu, "GPU": size.gpu}
    if room < count and not placement.comes({what: each for what, each in asked.items() if each}, selector):
        each = f"{size.cpu:g} CPU{f' and {size.gpu:g} GPU' if size.gpu else ''}"
        labels = ", ".join(f"{key} {condition}" for key, condition in selector.items())
        where = f" on nodes with {labels}" if labels else ""
        raise ClusterError(
            f"{count} x {each} are asked for{where}, and there is room for {room} beside what runs: name a"
            " smaller size, or stop the service first (mlops-ray down)"
        )


def answered(url: str, headers: dict[str, str], bodies: Sequence[bytes]) -> list[bytes]:
    """The requests that are answered, of these bodies; all of them are tried once, one after the other.

    Raises `ServiceError`, with what the service says, where none is.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=PATIENCE_S)
    found, said = [], ""
    with contextlib.closing(connection):
        for body in bodies:
            try:
                connection.request("POST", parts.path, body, headers)
                reply = connection.getresponse()
                answer = reply.read()
            except (OSError, http.client.HTTPException) as error:
                raise ServiceError(f"{url} does not answer: {error or type(error).__name__}") from error
            if reply.status == http.client.OK:
                found.append(request(url, headers, body))
            else:
                said = f"status {reply.status}: {answer[:MOST_SAID].decode(errors='replace')}"
    if not found:
        raise ServiceError(f"no request is answered: {said}")
    return found


def registry(project: Project, storage: Storage) -> Registry:
    """Where records are kept with their version."""
    from mlops_ray.serving.deploy import tracking_uri

    return Registry(tracking_uri(project, storage))


def _machine(project: Project) -> str:
    """The type of the machines of the replicas under load: as nodes are labelled, else as the project says.

    Raises `ClusterError` where they are of several, of which nothing could be told.
    """
    from mlops_ray.cluster import looper

    cluster, name = looper.RayCluster(), f"{project.project}{SUFFIX}"
    on = {replica.node for replica in cluster.replicas() if replica.model == name}
    named = project.cost.machine or UNNAMED
    types = {node.labels.get(MACHINE, named) for node in cluster.nodes() if node.id in on}
    if len(types) != 1:
        raise ClusterError(
            f"replicas run on machines of several types ({', '.join(sorted(types))}): say --machine"
        )
    return types.pop()


def _processor() -> str:
    """This machine's processor, cores and memory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(names, platform.processor() or platform.machine())
    return f"{name}, {psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"
