"""The command `mlops-ray`: parse, load the project file, call, print.

Modules that import Ray are imported inside the commands: `--help` stays quick, and Ray reads its settings
from the environment of the cluster that a command connects to.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from mlops_ray import __version__, audit, config, keys
from mlops_ray.cluster import head, interrupt, joined, service
from mlops_ray.config import Project
from mlops_ray.data import error_log
from mlops_ray.data.error_log import DEFECTS
from mlops_ray.errors import (
    WRONG_USE,
    DataError,
    MlopsError,
    ServiceError,
    TrainingError,
    UsageError,
    did_you_mean,
)
from mlops_ray.expressions import SEARCH_PATH
from mlops_ray.pages import plain
from mlops_ray.storage import Storage, replacing

if TYPE_CHECKING:
    from mlops_ray.cluster.intake import Intake
    from mlops_ray.cluster.jobs import Place
    from mlops_ray.features.dataset import TrainingSet
    from mlops_ray.features.store import FeatureStore

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
key_app = typer.Typer(no_args_is_help=True, help="Keys of the endpoint.")
app.add_typer(key_app, name="key")
features_app = typer.Typer(no_args_is_help=True, help="The feature store.")
app.add_typer(features_app, name="features")
rules_app = typer.Typer(no_args_is_help=True, help="Rules that rows keep.")
app.add_typer(rules_app, name="rules")
dataset_app = typer.Typer(no_args_is_help=True, help="Training sets.")
app.add_typer(dataset_app, name="dataset")
monitor_app = typer.Typer(no_args_is_help=True, help="What the monitor saw.")
app.add_typer(monitor_app, name="monitor")
labels_app = typer.Typer(no_args_is_help=True, help="What came true.")
app.add_typer(labels_app, name="labels")
alerts_app = typer.Typer(no_args_is_help=True, help="Who hears of alarms.")
app.add_typer(alerts_app, name="alerts")
prices_app = typer.Typer(no_args_is_help=True, help="What machines cost.")
app.add_typer(prices_app, name="prices")
jobs_app = typer.Typer(no_args_is_help=True, help="What `submit` has begun.")
app.add_typer(jobs_app, name="jobs")
audit_app = typer.Typer(no_args_is_help=True, help="Who did what, and whether that is all.")
app.add_typer(audit_app, name="audit")
#: Characters of a line where nobody is there to see it wrap.
WIDTH = 160
out = Console(width=None if sys.stdout.isatty() else WIDTH)
err = Console(stderr=True)
#: The model, and the storage, that the command works on; none before it has read the project file.
_opened: list[tuple[str, Storage]] = []

ProjectFile = Annotated[Path, typer.Argument(metavar="PROJECT.yaml", help="The project file.")]
SourceName = Annotated[str | None, typer.Option("--source", help="One of the sources; default: all.")]
Detach = Annotated[bool, typer.Option("--detach", help="Return; `down` stops it.")]
Address = Annotated[
    str | None,
    typer.Option(help="A Ray dashboard, or the storage folder of a local one; default: RAY_ADDRESS."),
]
Json = Annotated[bool, typer.Option("--json", help="One line of JSON, for machines.")]


@app.command(epilog="Example: mlops-ray init shop-sales")
def init(
    name: Annotated[str, typer.Argument(help="Small letters, digits and dashes.")],
    folder: Annotated[Path | None, typer.Option(help="Where; default: a folder of this name.")] = None,
    as_json: Json = False,
) -> None:
    """Write a new project that works as it is: data, features, tests, release on a merge."""
    from mlops_ray import template

    made = template.write(name, folder or Path(name))
    place = str(folder or name)
    said = f"{len(made)} files in {place}; begin with: cd {place} && make demo"
    _show({"name": name, "folder": place, "files": len(made)}, as_json, lambda _: print(said))


@app.command(epilog="Example: mlops-ray run configs/factory_load.yaml")
def run(
    file: ProjectFile,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Everything that is needed to have the model live; only what changed is done again."""
    _serve(file, detach, as_json, train=True)


@app.command(epilog="Example: mlops-ray serve configs/factory_load.yaml --detach")
def serve(file: ProjectFile, detach: Detach = False, as_json: Json = False) -> None:
    """Have the champion live again, and train nothing."""
    _serve(file, detach, as_json, train=False)


@app.command(epilog="Example: mlops-ray deploy configs/factory_load.yaml --emit kuberay --output manifests")
def deploy(
    file: ProjectFile,
    emit: Annotated[str | None, typer.Option(help="kuberay or serve-config: write what says it.")] = None,
    output: Annotated[Path | None, typer.Option(help="The folder to write into; default: shown.")] = None,
    image: Annotated[str, typer.Option(help="Of kuberay's pods.")] = f"mlops-ray:{__version__}",
    redis: Annotated[str, typer.Option(help="Where kuberay's head keeps its state.")] = "redis:6379",
    region: Annotated[str | None, typer.Option(help="Of kuberay's nodes.")] = None,
    machine: Annotated[
        list[str] | None, typer.Option(help="The type of kuberay's nodes of a pool, e.g. cpu=m7i.2xlarge")
    ] = None,
    as_json: Json = False,
) -> None:
    """Have the champion live on a cluster, as `serve` does; with --emit write what others start it by."""
    if emit is None:
        return _serve(file, True, as_json, train=False)
    from mlops_ray.cluster import kuberay

    machines = dict(_pair(each, "--machine", "cpu=m7i.2xlarge") for each in machine or ())
    place = kuberay.Place(image, redis, region, machines)
    files = kuberay.emitted(emit, file, place)
    if output is None:
        return print("---\n".join(files.values()), end="")
    output.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (output / name).write_text(text, encoding="utf-8")
    return _show({"files": [str(output / name) for name in files]}, as_json, lambda _: print(*files))


def _serve(file: Path, detach: bool, as_json: bool, *, train: bool) -> None:
    project, storage = _open(file)
    _warn(file)
    with (
        _Terminal() as progress,
        service.running(project, storage, progress, detach=detach, train=train) as live,
    ):
        progress.close()
        for note in live.notes:
            err.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        _show(live.to_json(), as_json, lambda _: _print_live(live))
        if live.ours and not detach:
            err.print("Serving until Ctrl-C.")
            threading.Event().wait()
        elif not detach:
            # A job leaves what it has started to its cluster.
            err.print("The service is not this command's and goes on; `mlops-ray down` stops it.")


@app.command(epilog="Example: mlops-ray ingest configs/flights.yaml")
def ingest(
    file: ProjectFile,
    follow: Annotated[bool, typer.Option("--follow", help="Go on, and bring in what arrives.")] = False,
    every: Annotated[float, typer.Option(help="With --follow: seconds between two looks.", min=0.1)] = 2.0,
    as_json: Json = False,
) -> None:
    """Bring every source into its history; only what changed is read again."""
    with _Terminal() as progress:
        if follow:
            for report in service.follow(*_open(file), progress, every):
                _show(report, as_json, _print_news)
            return
        found = service.ingest(*_open(file), progress)
    _show(found, as_json, _print_reports)


@app.command(epilog="Example: mlops-ray validate configs/flights.yaml --source weather")
def validate(file: ProjectFile, source: SourceName = None, as_json: Json = False) -> None:
    """Read and check sources, and store nothing; status 1 where one would not be stored."""
    storage, found = _ask(file, source, lambda intake, name: intake.validate(name))
    _show(found, as_json, _print_reports, partial(_print_pages, storage, "validation"))
    for report in found.values():
        if report["state"] == "refused":
            raise DataError(report["said"])


@app.command(epilog="Example: mlops-ray explore configs/flights.yaml --source flights")
def explore(file: ProjectFile, source: SourceName = None, as_json: Json = False) -> None:
    """A first look at sources: one page each, with pictures."""
    storage, found = _ask(file, source, lambda intake, name: intake.explore(name))
    _show(found, as_json, _print_findings, partial(_print_pages, storage, "explore"))


@rules_app.command("mine", epilog="Example: mlops-ray rules mine configs/flights.yaml --source flights")
def rules_mine(file: ProjectFile, source: SourceName = None, as_json: Json = False) -> None:
    """Propose rules that the rows keep; they check nothing until you copy them into the project file."""
    _, found = _ask(file, source, lambda intake, name: [rule.to_json() for rule in intake.mine(name)])
    _show(found, as_json, _print_rules)


@app.command(epilog="Example: mlops-ray train configs/flights.yaml --resume")
def train(
    file: ProjectFile,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a search that was killed.")] = False,
    like: Annotated[str | None, typer.Option(help="Begin with the best of runs like this one.")] = None,
    as_json: Json = False,
) -> None:
    """Search, fit, test and register the model; `push` or `run` makes it live."""
    if resume and like is not None:
        raise UsageError("a search that goes on has begun: leave out --like, or --resume")
    project, storage = _open(file)
    with _Terminal() as progress:
        found = service.train(project, storage, progress, resume=resume, like=like)
    _show(found, as_json, partial(_print_trained, project.training.metric))


@app.command(epilog="Example: mlops-ray reproduce 3 configs/factory_load.yaml")
def reproduce(version: int, file: ProjectFile, as_json: Json = False) -> None:
    """Train a version again from its record, and compare; status 1 where a metric is not the same."""
    project, storage = _open(file)
    with _Terminal() as progress:
        found = service.reproduce(project, storage, progress, version)
    _show(found, as_json, _print_reproduced)
    if not found["within"]:
        raise TrainingError(f"version {version} cannot be reproduced: its metrics are not the recorded ones")


@app.command(epilog="Example: mlops-ray push 3 configs/factory_load.yaml")
def push(
    version: Annotated[str, typer.Argument(help="A registered version, or: latest.")],
    file: ProjectFile,
    wait: Annotated[bool, typer.Option(help="Until it is live, or not; status 1 where it is not.")] = True,
    as_json: Json = False,
) -> None:
    """Have a registered version live as the project file says: verified, in shadow, in a canary, champion."""
    from mlops_ray.cluster import releases

    project, storage = _open(file)
    number = releases.version_of(project, storage, version)
    with _Terminal() as progress:
        progress.begin("release")
        found = releases.pushed(project, storage, progress, number, wait=wait)
    _show(found, as_json, _print_release)
    releases.require_live(found)


@app.command(epilog="Example: mlops-ray promote 3 configs/factory_load.yaml")
def promote(version: int, file: ProjectFile, as_json: Json = False) -> None:
    """End the present step of a version's release, as a person who has seen enough."""
    from mlops_ray.cluster import releases

    _show(releases.promote(*_open(file), version), as_json, _print_release)


@app.command(epilog="Example: mlops-ray rollback configs/factory_load.yaml")
def rollback(file: ProjectFile, as_json: Json = False) -> None:
    """Send the version back that is being released, else the champion: the one before it answers at once."""
    from mlops_ray.cluster import releases

    found = releases.rollback(*_open(file))
    _show(found, as_json, _print_fields)


@app.command(epilog="Example: mlops-ray predict configs/flights.yaml --input rows.csv --output a.parquet")
def predict(
    file: ProjectFile,
    input: Annotated[str, typer.Option(help="Parquet or CSV with a request's columns; file, folder, glob.")],
    output: Annotated[Path, typer.Option(help="A file, *.parquet, or a folder of such.")],
    version: Annotated[int | None, typer.Option(help="A registered version; default: the champion.")] = None,
    as_json: Json = False,
) -> None:
    """Answer the rows of files as the endpoint would; a run that was killed is gone on with."""
    from mlops_ray.cluster import scoring

    project, storage = _open(file)
    with _Terminal() as progress:
        found = scoring.predict(project, storage, progress, input, output, version)
    _show(found, as_json, _print_fields)


@app.command(epilog="Example: mlops-ray status configs/factory_load.yaml --json")
def status(
    file: ProjectFile,
    ports: Annotated[bool, typer.Option("--ports", help="Its ports, and what guards each.")] = False,
    as_json: Json = False,
) -> None:
    """What is wrong, in words, and what is live: address, versions, traffic, errors."""
    if ports:
        columns = ["name", "who", "host", "port", "guard"]
        found = service.listening(*_open(file))
        _show(found, as_json, lambda _: _print_table(columns, [port.values() for port in found]))
        return
    _show(service.status(*_open(file)), as_json, _print_status)


@app.command(epilog="Example: mlops-ray down configs/factory_load.yaml")
def down(file: ProjectFile) -> None:
    """Stop the service and its cluster."""
    print("stopped" if service.down(*_open(file)) else "nothing was running")


@app.command(epilog="Example: mlops-ray submit --working-dir . -- mlops-ray train project.yaml")
def submit(
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND", help="Any command, after two dashes.")
    ],
    address: Address = None,
    working_dir: Annotated[Path | None, typer.Option(help="A folder to take along.")] = None,
    env: Annotated[list[str] | None, typer.Option(help="A variable to take along, by its name.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the job; default: one of Ray's.")] = None,
    wait: Annotated[bool, typer.Option(help="Show its log, and end with its exit status.")] = True,
) -> None:
    """Run a command as a job on a Ray cluster; what its project file asks for by ${VAR} goes along."""
    from mlops_ray.cluster import jobs

    place = jobs.Place.of(address)
    if working_dir is None:
        jobs.require_absolute(command)
    passed = jobs.variables(command, env or (), working_dir or Path())
    with place.connected() as client:
        id = jobs.submit(client, command, passed, place.token, name=name, folder=working_dir)
    if not wait:
        print(id)
        return
    err.print(f"job {id} at {place.address}" + (f", with {', '.join(passed)}" if passed else ""))
    _follow(place, id, address)


@jobs_app.command("list", epilog="Example: mlops-ray jobs list --address http://head:8265")
def jobs_list(address: Address = None, as_json: Json = False) -> None:
    """The jobs of a cluster, the newest first."""
    from mlops_ray.cluster import jobs

    with jobs.Place.of(address).connected() as client:
        found = jobs.listed(client)
    columns = ["id", "status", "began", "seconds", "exit", "command"]
    rows = [["" if job[column] is None else job[column] for column in columns] for job in found]
    _show(found, as_json, lambda _: _print_table(columns, rows))


@jobs_app.command("logs", epilog="Example: mlops-ray jobs logs raysubmit_Xe7cvjyGJCyuCvm2")
def jobs_logs(id: str, address: Address = None) -> None:
    """A job's log from its beginning, until it is over; ends with its exit status."""
    from mlops_ray.cluster import jobs

    _follow(jobs.Place.of(address), id, address)


@jobs_app.command("stop", epilog="Example: mlops-ray jobs stop raysubmit_Xe7cvjyGJCyuCvm2")
def jobs_stop(id: str, address: Address = None) -> None:
    """Have a job end; what it brought up, as a service, goes on."""
    from mlops_ray.cluster import jobs

    with jobs.Place.of(address).connected() as client:
        print(jobs.stopped(client, id).lower())


def _follow(place: "Place", id: str, address: str | None) -> None:
    from mlops_ray.cluster import jobs

    try:
        with place.connected() as client:
            ended = jobs.followed(
                client, id, _pass_on, lambda said: err.print(f"note: {said}", soft_wrap=True)
            )
    except KeyboardInterrupt:
        which = f"{id} --address {address}" if address else id
        again = f"mlops-ray jobs logs {which} follows it again, mlops-ray jobs stop {which} stops it"
        err.print(f"The job goes on: {again}.", soft_wrap=True)
        raise typer.Exit(interrupt.INTERRUPTED) from None
    jobs.require_well(id, ended)


def _pass_on(text: str) -> None:
    """What a job writes, as it is and at once."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads any more, nor what Python would write at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise KeyboardInterrupt from None


@app.command(epilog="Example: mlops-ray schema > project.schema.json")
def schema() -> None:
    """The JSON Schema of the project file, for editors."""
    print(json.dumps(config.json_schema(), indent=2))


@app.command(epilog="Example: mlops-ray sbom > environment.cdx.json")
def sbom(
    version: Annotated[
        str | None, typer.Argument(help="A registered version, or: latest; default: what is installed here.")
    ] = None,
    file: Annotated[Path | None, typer.Argument(metavar="PROJECT.yaml", help="Whose version.")] = None,
) -> None:
    """What is inside, as CycloneDX lists it: the libraries of this environment, or of a version's package."""
    if version is None:
        from mlops_ray.sbom import environment

        found = environment()
    elif file is None:
        raise UsageError("a version is one of a project: add its file, e.g. mlops-ray sbom 3 project.yaml")
    else:
        from mlops_ray.cluster import releases
        from mlops_ray.cluster.pipeline import inside

        project, storage = _open(file)
        found = inside(project, storage, releases.version_of(project, storage, version))
    print(json.dumps(found, indent=2))


@app.command(epilog="Example: mlops-ray runs configs/factory_load.yaml --like 1f0c2d3e")
def runs(
    file: ProjectFile,
    like: Annotated[str | None, typer.Option(help="A run's id, or its beginning: runs on like data.")] = None,
    as_json: Json = False,
) -> None:
    """Compare runs and their trials, here and on a page with pictures."""
    from mlops_ray.serving.deploy import tracking_uri
    from mlops_ray.training.runs import look

    project, storage = _open(file)
    _show(look(project, storage, tracking_uri(project, storage), like), as_json, _print_runs)


@app.command(epilog="Example: mlops-ray models configs/factory_load.yaml")
def models(file: ProjectFile, as_json: Json = False) -> None:
    """The registered versions and their states."""
    from mlops_ray.cluster.pipeline import registered

    _show(registered(*_open(file)), as_json, _print_versions)


@app.command(epilog="Example: mlops-ray loadtest configs/factory_load.yaml --max-rows 64 --max-rows 256")
def loadtest(
    file: ProjectFile,
    cpu: Annotated[list[float] | None, typer.Option(help="CPUs of a replica; may be said again.")] = None,
    max_rows: Annotated[list[int] | None, typer.Option(help="Most rows of a batch; likewise.", min=1)] = None,
    rows: Annotated[int, typer.Option(help="Rows of a request.", min=1)] = 1,
    replicas: Annotated[int, typer.Option(help="Loaded together; told of is one.", min=1)] = 1,
    version: Annotated[int | None, typer.Option(help="A registered version; default: the champion.")] = None,
    rate_from: Annotated[float | None, typer.Option(help="The first rate, requests/s.", min=0.5)] = None,
    evenly: Annotated[bool, typer.Option("--evenly", help="Not as chance has it.")] = False,
    machine: Annotated[str | None, typer.Option(help="A type that nodes have as label `machine`.")] = None,
    as_json: Json = False,
) -> None:
    """Find the highest rate at which serving.slo holds, on replicas of their own, and record it."""
    from mlops_ray.cluster import loads

    if any(each <= 0 for each in cpu or ()):
        raise UsageError("--cpu is a number above 0")
    arrivals: Any = "even" if evenly else "poisson"
    wanted = loads.Wanted(
        tuple(cpu or ()), tuple(max_rows or ()), rows, replicas, version, rate_from, arrivals, machine
    )
    with _Terminal() as progress:
        found = loads.loadtest(*_open(file), progress, wanted)
    _show(found, as_json, _print_capacities)


@app.command(
    epilog="Example: mlops-ray erase shop.yaml --source orders --key customer=ann --reason 'request 17'"
)
def erase(
    file: ProjectFile,
    source: Annotated[str, typer.Option(help="The source whose rows they are.")],
    key: Annotated[list[str], typer.Option(help="A key of the source and its value; may be said again.")],
    reason: Annotated[str, typer.Option(help="Why; it is kept, so it does not say whose rows.")],
    yes: Annotated[bool, typer.Option("--yes", help="Without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Erase a person's rows, and what was made of them; says first what that is, and asks.

    Without --yes, where nobody can be asked, nothing is erased.
    """
    from mlops_ray.cluster.erasure import Erasure

    pairs = [_pair(each, "--key", "customer=ann") for each in key]
    if len(dict(pairs)) < len(pairs):
        raise UsageError(
            "--key names a column twice: rows are of all the keys together, so erase one after the other"
        )
    erasure = Erasure.of(*_open(file), source, dict(pairs), reason)

    def agrees(found: dict[str, Any]) -> bool:
        if as_json:
            return yes
        _print_to_be_erased(found)
        return yes or (sys.stdin.isatty() and err.is_terminal and typer.confirm("Erase it?", err=True))

    found = erasure.run(agrees)
    said = "erased" if found["erased"] else "nothing was erased; --yes does it"
    _show(found, as_json, lambda _: print(said), _print_kept, _print_notes)
    if not (found["erased"] or as_json or sys.stdin.isatty()):
        # A script must not take it for done.
        raise UsageError("nothing was erased: nobody is here to be asked, and --yes is missing")
    if found["left"]:
        raise DataError(f"not all was erased: {', '.join(found['left'])} could not be computed anew")


@key_app.command("add", epilog="Example: mlops-ray key add web configs/factory_load.yaml --role predict")
def key_add(
    name: str,
    file: ProjectFile,
    role: Annotated[str, typer.Option(help="predict, label, read or admin.")],
    rate: Annotated[float | None, typer.Option(help="Most requests a second, at each replica.")] = None,
    into_log: Annotated[
        bool, typer.Option("--into-log", help="As a job: show it, and its log has it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a key; this is the only time that it is shown."""
    from mlops_ray.cluster import jobs

    if jobs.JOB in os.environ and not into_log:
        raise UsageError(
            "the log of this job would keep the key, for all who may see jobs: make it in a shell of a node"
            " (ray exec, kubectl exec), or say --into-log"
        )
    key = keys.add(_open(file)[1], name, role, rate=rate)
    _show({"name": name, "role": role, "key": key}, as_json, lambda _: print(key))
    if not as_json:
        err.print("this key is shown once; requests send it as  Authorization: Bearer KEY", soft_wrap=True)


@key_app.command("revoke", epilog="Example: mlops-ray key revoke web configs/factory_load.yaml")
def key_revoke(name: str, file: ProjectFile) -> None:
    """Take a key away; it is refused within a second."""
    keys.revoke(_open(file)[1], name)
    print(f"revoked {name}")


@key_app.command("list", epilog="Example: mlops-ray key list configs/factory_load.yaml")
def key_list(file: ProjectFile, as_json: Json = False) -> None:
    """The names and roles of the keys."""
    _show(keys.names(_open(file)[1]), as_json, lambda found: _print_table(["name", "role"], found.items()))


@audit_app.command("verify", epilog="Example: mlops-ray audit verify configs/factory_load.yaml")
def audit_verify(file: ProjectFile, as_json: Json = False) -> None:
    """Whether the record of what was done is whole; status 1 where an entry was changed, moved or removed."""
    project, storage = _open(file, settle=False)
    heads = project.audit.heads
    last = audit.verified(storage, heads)
    found = {"entries": last["number"], "head": last["digest"], "compared_with": heads}
    _show(found, as_json, _print_verified)


@audit_app.command("list", epilog="Example: mlops-ray audit list configs/factory_load.yaml --what key")
def audit_list(
    file: ProjectFile,
    what: Annotated[str, typer.Option(help="Of those alone that say this, e.g. key or registered.")] = "",
    since: Annotated[str | None, typer.Option(help="An instant; default: the beginning.")] = None,
    as_json: Json = False,
) -> None:
    """Who did what, when, about what."""
    begin = _instant(since, "--since")
    entries = audit.entries(_open(file, settle=False)[1])
    found = [each for each in entries if what in each["what"]]
    if begin is not None:
        found = [each for each in found if datetime.fromisoformat(each["at"]) >= begin]
    columns = ["number", "at (UTC)", "who", "what", "about"]
    rows = [
        [
            each["number"],
            each["at"][:19],
            each["by"],
            each["what"],
            json.dumps(each["about"], ensure_ascii=False),
        ]
        for each in found
    ]
    _show(found, as_json, lambda _: _print_table(columns, rows))


@features_app.command("list", epilog="Example: mlops-ray features list configs/flights.yaml")
def features_list(file: ProjectFile, as_json: Json = False) -> None:
    """Every feature, what it is made of, and the hash of its definition, which is its identity."""
    found, columns = _store(file).list(), ["feature", "type", "definition", "identity"]
    _show(found, as_json, lambda _: _print_table(columns, [feature.values() for feature in found]))


@features_app.command(
    "describe", epilog="Example: mlops-ray features describe carrier_late_7d configs/flights.yaml"
)
def features_describe(name: str, file: ProjectFile, as_json: Json = False) -> None:
    """One feature, and the state of the history that it reads."""
    _show(_store(file).describe(name), as_json, _print_fields)


@features_app.command("get", epilog="Example: mlops-ray features get configs/flights.yaml --spine rows.csv")
def features_get(
    file: ProjectFile,
    spine: Annotated[Path, typer.Option(help="Parquet or CSV with the columns of a request.")],
    as_known_at: Annotated[
        str | None, typer.Option(help="An instant, e.g. 2026-11-01T00:00Z; default: all that is stored.")
    ] = None,
    as_json: Json = False,
) -> None:
    """The features of your own rows, in their order, as they were known; as Parquet with a manifest.

    The spine needs the keys, the target time (the moment of prediction lies the horizon before it) under the
    name of the target source's time column, and what on-request features read. Times carry an offset, as in
    2026-11-01T00:00Z. Other columns are passed through.
    """
    from mlops_ray.features.store import read_spine

    _show_set(_store(file).get(read_spine(spine), _instant(as_known_at)), as_json)


@features_app.command("materialize", epilog="Example: mlops-ray features materialize configs/flights.yaml")
def features_materialize(file: ProjectFile, as_json: Json = False) -> None:
    """Bring the online store up to what the histories know."""
    watermarks = {source: until.isoformat() for source, until in _store(file).materialize().items()}
    said = [f"{source}: online up to {until}" for source, until in watermarks.items()]
    _show(
        {"watermarks": watermarks}, as_json, lambda _: print("\n".join(said) or "no feature reads a history")
    )


@features_app.command(
    "export-feast", epilog="Example: mlops-ray features export-feast feast_repo configs/flights.yaml"
)
def features_export_feast(folder: Path, file: ProjectFile, as_json: Json = False) -> None:
    """Write a Feast repository of the features that Feast can say."""
    others = _store(file).export_feast(folder)
    said = [f"written to {folder}", *(f"not exported: {name} ({reason})" for name, reason in others.items())]
    _show({"folder": str(folder), "not_exported": others}, as_json, lambda _: print("\n".join(said)))


@dataset_app.command(
    "rebuild", epilog="Example: mlops-ray dataset rebuild .mlops/datasets/NAME-0123456789ab.json"
)
def dataset_rebuild(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="The JSON file beside the set.")],
    project: Annotated[
        Path | None,
        typer.Option(help="The project file: whose functions features call, whose policies hold today."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a training set again from its manifest, and check that it is the same."""
    from mlops_ray.features.dataset import rebuild

    known = _open(project)[0] if project else None
    _show_set(rebuild(manifest, known.functions, known.policies) if known else rebuild(manifest), as_json)


@monitor_app.command("report", epilog="Example: mlops-ray monitor report configs/factory_load.yaml")
def monitor_report(
    file: ProjectFile,
    begin: Annotated[
        str | None, typer.Option("--from", help="An instant; default: the first window.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="An instant; default: the last window.")] = None,
    as_json: Json = False,
) -> None:
    """Alarms, quality and drift of a period, as one page."""
    from mlops_ray.monitoring import period

    project, storage = _open(file)
    found = period.document(storage, project.project, _instant(begin, "--from"), _instant(end, "--to"))
    _show_period(storage, "monitor", found, as_json)


@app.command(epilog="Example: mlops-ray replay configs/factory_load.yaml --from 2016-11-01T00:00Z")
def replay(
    file: ProjectFile,
    begin: Annotated[str | None, typer.Option("--from", help="An instant; default: the beginning.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="An instant; default: the end.")] = None,
    as_json: Json = False,
) -> None:
    """A past period through the monitor, as if the live version had answered it: alarms, quality, drift."""
    from mlops_ray.cluster import replays

    project, storage = _open(file)
    found = replays.run(project, storage, _instant(begin, "--from"), _instant(end, "--to"))
    _show_period(storage, "replay", found, as_json)


@alerts_app.command("test", epilog="Example: mlops-ray alerts test configs/factory_load.yaml")
def alerts_test(file: ProjectFile, as_json: Json = False) -> None:
    """Send a test over each route of monitoring.alerts, and say what came of it; status 1 where one fails."""
    from mlops_ray.cluster import alerts

    project, storage = _open(file)
    _warn(file)
    found = alerts.tried(project, storage)
    rows = [[each["route"], each["to"], each["said"]] for each in found]
    _show(found, as_json, lambda _: _print_table(["route", "to", "what came of it"], rows))
    if failed := [each["route"] for each in found if not each["works"]]:
        raise ServiceError(f"nobody would hear of an alarm by {', '.join(failed)}")


@labels_app.command("load", epilog="Example: mlops-ray labels load truth.csv configs/factory_load.yaml")
def labels_load(
    truth: Annotated[Path, typer.Argument(metavar="FILE", help="Parquet or CSV with a column `label`.")],
    file: ProjectFile,
    as_json: Json = False,
) -> None:
    """Take in what came true, by `request_id` (and `row`), or by the request's columns."""
    from mlops_ray.cluster import truths

    _show(truths.load(*_open(file), truth), as_json, _print_fields)


@app.command(epilog="Example: mlops-ray cost configs/factory_load.yaml --plan")
def cost(
    file: ProjectFile,
    plan: Annotated[bool, typer.Option("--plan", help="What the declared load would cost, where.")] = False,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="With --plan: also machines that were never measured, as guesses."),
    ] = False,
    rate: Annotated[
        float | None,
        typer.Option(help="With --plan: what so many requests/s would need, instead.", min=0.001, max=1e9),
    ] = None,
    begin: Annotated[str | None, typer.Option("--from", help="An instant; default: the beginning.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="An instant; default: the end.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write what was spent as a page, too.")] = None,
    as_json: Json = False,
) -> None:
    """What was spent, by model, version, key, machine; with --plan the cheapest machine fast enough."""
    from mlops_ray.cluster import costs

    project, storage = _open(file)
    if plan:
        if begin or end or html:
            raise UsageError("--from, --to and --html are of what was spent: leave out --plan")
        _show(costs.plan(project, storage, estimate=estimate, rate=rate), as_json, _print_plan)
        return
    if estimate or rate is not None:
        raise UsageError("--estimate and --rate are of a plan: add --plan")
    found = costs.spent(project, storage, _instant(begin, "--from"), _instant(end, "--to"))
    if html is not None:
        costs.save(html, costs.html(found))
    _show(found, as_json, _print_spent)


@app.command(epilog="Example: mlops-ray profit configs/factory_load.yaml")
def profit(
    file: ProjectFile,
    begin: Annotated[str | None, typer.Option("--from", help="An instant: by what was spent since.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="An instant: by what was spent until then.")] = None,
    as_json: Json = False,
) -> None:
    """What the live version earns a day, as planned or as it was, and where it would break even."""
    from mlops_ray.cluster import costs

    found = costs.profit(*_open(file), _instant(begin, "--from"), _instant(end, "--to"))
    _show(found, as_json, _print_profit)


@prices_app.command("import", epilog="Example: mlops-ray prices import csv mine.csv --output prices.yaml")
def prices_import(
    format: Annotated[str, typer.Argument(metavar="FORMAT", help="csv, aws, azure or gcp.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What was exported.")],
    output: Annotated[Path, typer.Option(help="The file of prices to write.")],
    replace: Annotated[bool, typer.Option("--replace", help="Where it is there already.")] = False,
    region: Annotated[str | None, typer.Option(help="That alone; default: all.")] = None,
    currency: Annotated[str | None, typer.Option(help="Of several, or of a CSV file without.")] = None,
    date: Annotated[
        datetime | None, typer.Option(help="When it was had; default: when the file was written.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Where it is from; default: the file's name.")] = None,
    shapes: Annotated[
        Path | None, typer.Option(help="CSV: type,vcpu,memory_gib,gpu,gpus. For gcp, and GPUs of azure.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="What a column of a CSV file is called, e.g. per_hour=EUR/h")
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring in prices: a table of your own (type, vcpu, per_hour, …), or the export of a cloud."""
    from mlops_ray.cluster import costs
    from mlops_ray.cost import exports

    renamed = dict(_pair(each, "--column", "per_hour=EUR/h") for each in column or ())
    sizes = None if shapes is None else exports.shapes(costs.read_text(shapes), str(shapes))
    day = date.date() if date else costs.modified(file)
    asked = exports.Asked(day, source or file.name, region, currency, sizes, renamed)
    found = costs.import_prices(format, file, output, asked, replace=replace)
    said = f"{found['prices']} prices in {found['currency']}: {found['output']}"
    _show(found, as_json, lambda _: print(said), _print_notes)


def _pair(text: str, option: str, example: str) -> tuple[str, str]:
    name, given, theirs = text.partition("=")
    if not (name and given and theirs):
        raise UsageError(f"{option}: {text!r} says nothing on one side; write e.g. {example}")
    return name, theirs


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """A tabular model's whole life on Ray."""
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """The entry point: errors become a sentence on stderr and an exit status."""
    _opened.clear()
    # Before anything imports MLflow, also in commands that start no cluster.
    os.environ.update(head.SILENT)
    try:
        app()
    except MlopsError as error:
        if error.exit_status != WRONG_USE:
            _tell(error)
        err.print(f"error: {plain(str(error))}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_status)
    except DEFECTS as error:
        _tell(error)
        raise
    except KeyboardInterrupt:
        err.print("stopped")
        sys.exit(interrupt.INTERRUPTED)


def _tell(error: BaseException) -> None:
    """What a command failed of stands in the error log of the storage that it works on."""
    for model, storage in _opened:
        error_log.tell(storage, model, sys.argv[1], error)


def _warn(file: Path) -> None:
    for warning in config.warnings(file):
        err.print(f"note: {warning}", style="yellow", markup=False, soft_wrap=True)


def _open(file: Path, *, settle: bool = True) -> tuple[Project, Storage]:
    """A project and its storage; who but looks at the audit record changes nothing of it."""
    # Functions that the file names may stand beside it, for this process and those that it starts.
    os.environ[SEARCH_PATH] = str(file.absolute().parent)
    project = config.load(file)
    joined.require_lasting(project)
    storage = Storage.open(project.storage, reads=not settle)
    if settle:
        audit.settle(storage, project.project, project.audit.heads)
    _opened[:] = [(project.project, storage)]
    return project, storage


def _ask(
    file: Path, source: str | None, ask: Callable[["Intake", str], Any]
) -> tuple[Storage, dict[str, Any]]:
    """What the intake answers of one source of a project, or of each."""
    project, storage = _open(file)
    if source is not None and source not in project.sources:
        raise UsageError(f"no source {source!r}{did_you_mean(source, project.sources)}")
    with _Terminal() as progress, service.reading(project, storage, progress) as intake:
        return storage, {name: ask(intake, name) for name in ([source] if source else project.sources)}


def _store(file: Path) -> "FeatureStore":
    from mlops_ray.features.store import FeatureStore

    return FeatureStore(*_open(file))


def _instant(text: str | None, option: str = "--as-known-at") -> datetime | None:
    if text is None:
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{option}: {text!r} is no instant; write e.g. 2026-11-01T00:00Z") from None
    if instant.tzinfo is None:
        # A date alone begins somewhere too.
        whole = text if "T" in text or " " in text else f"{instant.date()}T00:00"
        raise UsageError(f"{option}: {text!r} carries no offset; write e.g. {whole}Z for UTC")
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        raise UsageError(f"{option}: {text!r} lies outside the calendar") from None


class _Terminal:
    """Progress of a run on a terminal, and stage by stage in a job's log; on anything else, nothing."""

    def __init__(self) -> None:
        self._is_told = err.is_terminal or joined.address() is not None
        self._status = Status("", console=err)
        self._stage = ""

    def __enter__(self) -> "_Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, stage: str) -> None:
        self._stage = stage
        self.update("")
        if err.is_terminal:
            self._status.start()

    def update(self, message: str) -> None:
        self._status.update(f"[bold]{self._stage}[/bold] {message}")

    def end(self, stage: str, message: str, seconds: float | None) -> None:
        self.close()
        if self._is_told:
            took = "unchanged" if seconds is None else f"{seconds:.1f} s"
            err.print(f"{stage:<24}{took:>8}  {message}", markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._status.stop()


def _show(found: Any, as_json: bool, *say: Callable[[Any], None]) -> None:
    """What a command found: one line of JSON for machines, or what these print of it for people."""
    if as_json:
        print(json.dumps(found))
    else:
        for write in say:
            write(found)
    # Who reads it through a pipe may do so while the command goes on.
    sys.stdout.flush()


def _print_fields(fields: dict[str, Any]) -> None:
    width = max([10, *map(len, fields)])
    for name, value in fields.items():
        print(f"{name:<{width}} {plain(str(value))}")


def _print_verified(found: dict[str, Any]) -> None:
    print(f"{found['entries']:,} entries, none changed, moved or removed; the last is {found['head']}")
    if found["compared_with"] is None:
        print("compared with nothing outside the storage (audit.heads): all of it may be another")
    else:
        print(f"as {found['compared_with']} has heard of them")


def _print_table(columns: list[str], rows: Iterable[Iterable[Any]]) -> None:
    table = Table(*columns)
    for row in rows:
        # What others wrote neither dresses up nor steers the terminal.
        table.add_row(*(Text(plain(f"{c:.4g}" if isinstance(c, float) else str(c))) for c in row))
    out.print(table)


def _print_release(found: dict[str, Any]) -> None:
    rows = [[turn["at"][:19], turn["state"], turn["step"], turn["reason"]] for turn in found["turns"]]
    _print_table(["at (UTC)", "state", "step", "why"], rows)
    if found.get("profit"):
        print(f"profit: {plain(found['profit'])}")
    took = f" after {found['seconds']} s" if "seconds" in found else ""
    print(f"version {found['version']} is {found['state'].replace('_', ' ')}{took}")


def _print_runs(found: dict[str, Any]) -> None:
    from mlops_ray.training.runs import table

    shown = table(found["alike"] or found["runs"])
    _print_table([*shown.head], shown.rows)
    print(f"page {found['page']}")


def _print_versions(found: list[dict[str, Any]]) -> None:
    columns = ["version", "state", "family", "metric", "value", "cost", "created", "bears", "reason"]
    said = [
        v | {"created": v["created"][:19], "cost": _amount(v["cost"]), "bears": _borne(v["capacities"])}
        for v in found
    ]
    _print_table(columns, [["" if v[column] is None else v[column] for column in columns] for v in said])


def _amount(cost: dict[str, Any] | None) -> str:
    """An amount with its currency; nothing where it is not known."""
    return "" if cost is None else f"{cost['amount']:.4g} {cost['currency']}"


def _borne(capacities: list[dict[str, Any]]) -> str:
    """What a version's replicas bear, as the last load tests found it."""
    return "; ".join(
        f"{c['rate']:.4g}/s at cpu {c['cpu']:g} on {c['machine']}{' (estimated)' if c['estimated'] else ''}"
        for c in capacities
    )


def _print_capacities(found: dict[str, Any]) -> None:
    columns = ["machine", "cpu", "max_rows", "rows", "rate", "high", "p99_ms", "error_rate"]
    _print_table(columns, [[c[column] for column in columns] for c in found["capacities"]])
    for note in found["notes"]:
        print(f"note: {note}")
    for name in found["files"]:
        print(f"record      {name}")


def _show_set(made: "TrainingSet", as_json: bool) -> None:
    manifest = made.path.with_suffix(".json")
    found = {"file": str(made.path), "manifest": str(manifest), "digest": made.digest}
    size = f"{made.frame.height:,} rows × {made.frame.width} columns"
    _show(found, as_json, lambda _: print(size), _print_fields)


def _print_findings(found: dict[str, dict[str, Any]]) -> None:
    for name, document in found.items():
        for finding in document["findings"]:
            out.print(plain(f"{name}: {finding['said']}"), markup=False, highlight=False, soft_wrap=True)


def _print_rules(found: dict[str, list[dict[str, Any]]]) -> None:
    for name, rules in found.items():
        what = "copy what you approve below" if rules else "nothing stands out to be proposed for"
        print(f"# of {name}: {what} sources.{name}.rules")
        for rule in rules:
            expected, observed = f"{rule['expected']:,.1f}", f"{rule['observed']:,}"
            print(f"# {rule['support']:,} rows, {expected} expected to break it, {observed} do")
            written = json.dumps({key: rule[key] for key in ("name", "require")}, ensure_ascii=False)
            # YAML reads the numbers as the characters that they are of.
            print(f"- {plain(written)}")


def _print_to_be_erased(found: dict[str, Any]) -> None:
    places = ("history", "online", "predictions", "labels", "training_sets", "reports")
    _print_table(
        ["place", "to be erased"], [[place.replace("_", " "), f"{found[place]:,}"] for place in places]
    )
    for name in found["sets"]:
        print(f"computed anew: {name}")


def _print_kept(found: dict[str, Any]) -> None:
    for name in found["named_in"]:
        print(f"names the key, and is kept: {plain(name)}")


def _print_reports(found: dict[str, dict[str, Any]]) -> None:
    columns = ["source", "state", "rows", "valid", "quarantined", "filtered", "flagged"]
    rows = [
        [
            name,
            "unchanged" if report.get("unchanged") else report["state"],
            *(report[key] for key in ("rows_in", "valid", "quarantined", "filtered")),
            ", ".join(f"{c['failed']:,} {c['rule']}" for c in report["checks"] if c["severity"] == "flag"),
        ]
        for name, report in found.items()
    ]
    _print_table(columns, rows)
    for name, report in found.items():
        if report.get("erased"):
            print(f"{name}: {report['erased']:,} rows were left out since they were erased")


def _print_news(report: dict[str, Any]) -> None:
    if "error" in report:
        err.print(plain(f"{report['source']}: {report['error']}"), style="red", markup=False, soft_wrap=True)
    else:
        valid, quarantined = report["valid"], report["quarantined"]
        print(f"{report['made_at']} {report['source']}: {valid:,} rows, {quarantined:,} in quarantine")


def _print_pages(storage: Storage, what: str, names: Iterable[str]) -> None:
    for name in names:
        print(f"{name:<11} {storage.path('reports', f'{what}-{name}.html')}")


def _print_live(live: service.Live) -> None:
    if live.trained is not None:
        _print_trained(live.metric, live.trained)
    if live.plan is not None:
        _print_plan(live.plan)
    if live.profit:
        print(f"profit: {plain(live.profit)}")
    unchanged = {"unchanged": ", ".join(live.unchanged)} if live.unchanged else {}
    version = f"{live.version} of {live.model}"
    places = {"version": version, "address": f"{live.url}, gRPC {live.grpc}"}
    places |= {"dashboard": live.dashboard, "try": live.curl}
    _print_fields(unchanged | places)


def _print_trained(metric: str, trained: dict[str, Any]) -> None:
    cost = trained.get("cost")
    columns = ["family", "trials", f"best {metric}", "seconds"]
    columns += [f"cost, {cost['currency']}"] if cost else []
    _print_table(columns, [row[: len(columns)] for row in _families(trained["leaderboard"])])
    rivals = trained["baselines"]
    rows = [
        [name, _known(value), " to ".join(map(_known, trained["intervals"][name]))]
        + [theirs.get(name, "") for theirs in rivals.values()]
        for name, value in trained["metrics"].items()
    ]
    _print_table(["test part", f"{trained['family']} (winner)", "with 95 % confidence", *rivals], rows)
    failed = {t["family"]: t["error"] for t in trained["leaderboard"] if t["state"] == "failed"}
    for family, error in failed.items():
        out.print(plain(f"trials of {family} failed: {error}"), markup=False)
    for reason in trained["refused"]:
        out.print(plain(f"not live: {reason}"), markup=False)
    for note in trained["notes"]:
        out.print(plain(f"note: {note}"), markup=False)
    spent = {"cost": f"{_amount(cost)}, of which the search {cost['search']:.4g}"} if cost else {}
    _print_fields(spent | {"model card": trained["card"]})


def _print_reproduced(found: dict[str, Any]) -> None:
    rows = [[name, pair["recorded"], pair["now"]] for name, pair in found["metrics"].items()]
    _print_table(["metric", "recorded", "now"], rows)
    changed = ", ".join(f"{name} {was} → {now}" for name, (was, now) in found["changed_libraries"].items())
    _print_fields(
        {
            "model file": "the same bytes" if found["same_file"] else "other bytes",
            "answers": f"differ by at most {found['largest_difference']:.3g}",
            "libraries": changed or "the same",
        }
    )


def _families(leaderboard: list[dict[str, Any]]) -> list[list[Any]]:
    """The best trial of each family, with how many were tried and what they cost; those that ended first."""
    tried: dict[str, list[dict[str, Any]]] = {}
    for trial in leaderboard:
        tried.setdefault(trial["family"], []).append(trial)
    costs = {family: sum(trial.get("cost") or 0.0 for trial in trials) for family, trials in tried.items()}
    return [[f, len(ts), _score(ts[0]), sum(t["seconds"] for t in ts), costs[f]] for f, ts in tried.items()]


def _known(value: float | None) -> str:
    """A number as people read it; a dash where there is none."""
    return "–" if value is None else f"{value:.4g}"


def _score(trial: dict[str, Any]) -> str:
    """The score of a trial; where it was stopped, of the folds that it got to."""
    stopped = f" after {len(trial['folds'])} folds" if trial["state"] == "stopped" else ""
    return trial["state"] if trial["state"] == "failed" else f"{trial['score']:.4g}{stopped}"


def _print_status(found: dict[str, Any]) -> None:
    # Of what is live it is said with what else is wrong.
    head = ("model", "state", "url", "dashboard", *(() if "wrong" in found else ("said",)))
    _print_fields({key: found[key] for key in head if found.get(key)})
    if "wrong" in found:
        for said in found["wrong"] or ["nothing that is known"]:
            _print_fields({"wrong": said})
    for model in found.get("models", []):
        drifted = [column["column"] for column in model["drift"] if column["drifted"]]
        _print_fields(
            {
                "version": f"{model['version']} of {model['name']}, {model['state']} since {model['since']}",
                "replicas": model["places"]["said"],
                "requests": f"{json.dumps(model['requests'])} by status, {model['rows']} rows",
                "invalid": f"{sum(value['count'] for value in model['invalid'])} values",
                "drift": ", ".join(drifted) or "none found",
                "alarm": _alarm(model["alarms"]),
                **_released(model),
                **_retrained(model["loop"]),
                **_costs(model["cost"]),
            }
        )


def _show_period(storage: Storage, what: str, found: dict[str, Any], as_json: bool) -> None:
    """Writes the page of what the monitor saw, or would have seen, and shows it."""
    from mlops_ray.monitoring import period

    name = found["model"]
    with replacing(storage.path("reports", f"{what}-{name}.html")) as made:
        made.write_text(period.html(found), encoding="utf-8")
    _show(found, as_json, _print_period)
    if not as_json:
        _print_pages(storage, what, [name])


def _print_period(found: dict[str, Any]) -> None:
    going = sum(alarm["resolved"] is None for alarm in found["alarms"])
    _print_fields(
        {
            "period": f"{found['from']} to {found['to']}",
            "windows": f"{len(found['looks']):,}, {found['rows']:,} rows",
            "alarms": f"{len(found['alarms']):,}, of which {going} go on",
            "spent": f"{found['spent']:.3g} false alarms to be expected, at most",
        }
    )


def _print_plan(found: dict[str, Any]) -> None:
    currency, chosen = found["currency"], found["chosen"]
    columns = ["", "machine", "region", f"{currency}/h", "replica", "replicas", "nodes"]
    columns += [f"{currency}/day", "1,000 predictions", "used", "why not"]
    rows = []
    for at, each in enumerate(found["options"]):
        size = each["capacity"] or {"cpu": 0, "gpu": 0}
        parts = [f"{size[what]:g} {what.upper()}" for what in ("cpu", "gpu") if size[what]]
        name = each["machine"] + " (spot)" * each["spot"]
        spread = [_spread(each["replicas"]), _spread(each["nodes"])]
        costs = [_known(each["per_day"]), _known(each["per_1000"])]
        used = f"{each['utilisation']:.0%}" if each["nodes"] else "–"
        head = ["→" if at == chosen else "", name, each["region"], each["price"], ", ".join(parts)]
        rows.append([*head, *spread, *costs, used, each["refused"]])
    _print_table(columns, rows)
    for said in found["said"]:
        print(plain(said))
    _print_notes(found)


def _spread(counts: list[int]) -> str:
    """Over a day, the least and the most."""
    low, high = min(counts, default=0), max(counts, default=0)
    return "–" if not counts else f"{low}" if low == high else f"{low} to {high}"


def _print_spent(found: dict[str, Any]) -> None:
    from mlops_ray.cluster import costs

    columns = ["model", "version", "predictions", "cost", "1,000 predictions"]
    _print_table(columns, costs.version_rows(found))
    if found["keys"]:
        _print_table(["key", *columns], costs.key_rows(found))
        print(costs.BY_KEY)
    _print_table(["who", "machine", "node hours", "cost"], costs.share_rows(found))
    _print_fields(
        {
            "period": f"{found['from']} to {found['to']}, of which {found['hours']:.4g} hours were metered",
            "total": f"{found['total']:.4g} {found['currency']}",
        }
    )
    _print_notes(found)


def _print_profit(found: dict[str, Any]) -> None:
    currency = found["currency"]
    _print_fields(
        {
            "version": f"{found['version']} of {found['model']}, by {found['by']}",
            "predictions": f"{found['predictions']:,.0f} a day, worth {found['worth']:.4g} {currency} each",
            "value": f"{found['value']:.4g} {currency} a day",
            **{each: f"{found[each]:.4g} {currency} a day" for each in ("serving", "training", "storage")},
            "profit": f"{found['profit']:.4g} {currency} a day",
            "break-even": f"at {_known(found['break_even_price'])} {currency} a prediction, or from "
            f"{_known(found['break_even_volume'])} predictions a day on",
        }
    )
    _print_notes(found)


def _print_notes(found: dict[str, Any]) -> None:
    for note in found["notes"]:
        err.print(f"note: {plain(note)}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _alarm(episodes: list[dict[str, Any]]) -> str:
    """What the alarm that goes on is about, the worst first."""
    if not episodes or episodes[0]["resolved"] is not None:
        return "none"
    return "; ".join(found["evidence"] for found in episodes[0]["found"])


def _retrained(loop: dict[str, Any] | None) -> dict[str, str]:
    """What the loop does for a model, or why it does nothing; empty where no project asks for it."""
    if loop is None or loop["decided"] is None:
        return {}
    said = loop["decided"]["reason"]
    for last in loop["retrainings"][-1:]:
        if last["ended"]:
            said += f"; the last was {last['state'].replace('_', ' ')}: {last['said']}"
        else:
            said = f"{last['state']}: {last['said']} (ray job logs {last['id']})"
    return {"retraining": said}


def _costs(cost: dict[str, Any] | None) -> dict[str, str]:
    """What 1,000 predictions cost, and how the day's budget stands; empty where no project has prices."""
    if cost is None:
        return {}
    per, budget, currency = cost["per_1000"], cost["budget"], cost["currency"]
    said = ["nothing was answered yet"]
    if per is not None:
        since = datetime.fromtimestamp(per["since"], UTC)
        said = [f"{per['amount']:.4g} {currency} per 1,000 predictions since {since:%Y-%m-%d}, idle included"]
    if cost["oldest"]:
        said.append(f"by prices of {cost['oldest']} and later")
    if budget is not None:
        said.append(
            f"{budget['spent']:.4g} of {budget['per_day']:.4g} {currency} of today's budget spent (UTC)"
        )
    if cost["held"]:
        said.append("no replica is added, and nothing is trained by itself")
    return {"cost": "; ".join([*said, *cost["notes"]])}


def _released(model: dict[str, Any]) -> dict[str, str]:
    """What goes on in a model's release, else how the last one ended that did not go live."""
    challenger, last = model["challenger"], model["history"][-1:]
    if challenger is not None:
        seen = challenger["seen"] or {"requests": 0, "said": []}
        shares = {"canary": f" of {challenger['weight']:g} % of the keys", "shadow": " of all requests"}
        where = f"version {challenger['version']}, {challenger['state']}{shares.get(challenger['state'], '')}"
        said = [f"{where} since {challenger['since']}", f"{seen['requests']:,} requests", *seen["said"]]
        return {"release": "; ".join(said)}
    if last and last[0]["version"] != model["version"]:
        state = last[0]["state"].replace("_", " ")
        return {"release": f"version {last[0]['version']} was {state}: {last[0]['reason']}"}
    return {}
