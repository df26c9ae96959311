"""The command `mlops-ray`: parse, load the project file, call, print.

Modules that import Ray are imported inside the commands: `--help` stays quick, and Ray reads its settings
from the environment of the cluster that a command connects to.
"""

import json
import os
import sys
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.status import Status
from rich.table import Table

from mlops_ray import __version__, config, keys
from mlops_ray.cluster import head, interrupt, service
from mlops_ray.config import Project
from mlops_ray.errors import DataError, MlopsError, UsageError, did_you_mean
from mlops_ray.expressions import SEARCH_PATH
from mlops_ray.storage import Storage

if TYPE_CHECKING:
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
out, err = Console(), Console(stderr=True)

ProjectFile = Annotated[Path, typer.Argument(metavar="PROJECT.yaml", help="The project file.")]
SourceName = Annotated[str | None, typer.Option("--source", help="One of the sources; default: all.")]
Json = Annotated[bool, typer.Option("--json", help="One line of JSON, for machines.")]


@app.command(epilog="Example: mlops-ray run configs/factory_load.yaml")
def run(
    file: ProjectFile,
    detach: Annotated[bool, typer.Option("--detach", help="Return; `down` stops it.")] = False,
    as_json: Json = False,
) -> None:
    """Everything that is needed to have the model live; only what changed is done again."""
    project, storage = _open(file)
    for warning in config.warnings(file):
        err.print(f"note: {warning}", style="yellow", markup=False, soft_wrap=True)
    with _Terminal() as progress, service.running(project, storage, progress, detach=detach) as live:
        progress.close()
        if as_json:
            _print_json(live.to_json())
        else:
            _print_live(live)
        if detach:
            return
        if not live.ours:
            err.print("The service ran before and goes on; `mlops-ray down` stops it.")
            return
        err.print("Serving until Ctrl-C.")
        threading.Event().wait()


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
                _print_news(report, as_json)
            return
        found = service.ingest(*_open(file), progress)
    if as_json:
        _print_json(found)
    else:
        _print_reports(found)


@app.command(epilog="Example: mlops-ray validate configs/flights.yaml --source weather")
def validate(file: ProjectFile, source: SourceName = None, as_json: Json = False) -> None:
    """Read and check sources, and store nothing; status 1 where one would not be stored."""
    project, storage = _open(file)
    with _Terminal() as progress, service.reading(project, storage, progress) as intake:
        found = {name: intake.validate(name) for name in _sources(project, source)}
    if as_json:
        _print_json(found)
    else:
        _print_reports(found)
        _print_pages(storage, "validation", found)
    for report in found.values():
        if report["state"] == "refused":
            raise DataError(report["said"])


@app.command(epilog="Example: mlops-ray explore configs/flights.yaml --source flights")
def explore(file: ProjectFile, source: SourceName = None, as_json: Json = False) -> None:
    """A first look at sources: one page each, with pictures."""
    project, storage = _open(file)
    with _Terminal() as progress, service.reading(project, storage, progress) as intake:
        found = {name: intake.explore(name) for name in _sources(project, source)}
    if as_json:
        _print_json(found)
    else:
        for name, document in found.items():
            for finding in document["findings"]:
                out.print(f"{name}: {finding['said']}", markup=False, highlight=False, soft_wrap=True)
        _print_pages(storage, "explore", found)


@rules_app.command("mine", epilog="Example: mlops-ray rules mine configs/flights.yaml --source flights")
def rules_mine(file: ProjectFile, source: SourceName = None, as_json: Json = False) -> None:
    """Propose rules that the rows keep; they check nothing until you copy them into the project file."""
    project, storage = _open(file)
    with _Terminal() as progress, service.reading(project, storage, progress) as intake:
        found = {name: intake.mine(name) for name in _sources(project, source)}
    if as_json:
        _print_json({name: [rule.to_json() for rule in rules] for name, rules in found.items()})
        return
    for name, rules in found.items():
        what = "copy what you approve below" if rules else "nothing stands out to be proposed for"
        print(f"# of {name}: {what} sources.{name}.rules")
        for rule in rules:
            print(f"# {rule.support:,} rows, {rule.expected:,.1f} expected to break it, {rule.observed:,} do")
            print(f"- {json.dumps({'name': rule.name, 'require': rule.require}, ensure_ascii=False)}")


@app.command(epilog="Example: mlops-ray status configs/factory_load.yaml --json")
def status(file: ProjectFile, as_json: Json = False) -> None:
    """What is live: address, versions, traffic, errors."""
    found = service.status(*_open(file))
    if as_json:
        _print_json(found)
    else:
        _print_status(found)


@app.command(epilog="Example: mlops-ray down configs/factory_load.yaml")
def down(file: ProjectFile) -> None:
    """Stop the service and its cluster."""
    _, storage = _open(file)
    print("stopped" if service.down(storage) else "nothing was running")


@app.command(epilog="Example: mlops-ray schema > project.schema.json")
def schema() -> None:
    """The JSON Schema of the project file, for editors."""
    print(json.dumps(config.json_schema(), indent=2))


@app.command(epilog="Example: mlops-ray models configs/factory_load.yaml")
def models(file: ProjectFile, as_json: Json = False) -> None:
    """The registered versions and their states."""
    from mlops_ray.cluster.pipeline import registered

    project, storage = _open(file)
    found = registered(project, storage)
    if as_json:
        _print_json(found)
    else:
        rows = [[v["version"], v["state"], v["family"], v["metrics"]["mae"], v["created_at"]] for v in found]
        _print_table(["version", "state", "family", "mae", "created"], rows)


@key_app.command("add", epilog="Example: mlops-ray key add web configs/factory_load.yaml --role predict")
def key_add(
    name: str,
    file: ProjectFile,
    role: Annotated[str, typer.Option(help="predict, label, read or admin.")],
    as_json: Json = False,
) -> None:
    """Make a key; this is the only time that it is shown."""
    key = keys.add(_open(file)[1], name, role)
    if as_json:
        _print_json({"name": name, "role": role, "key": key})
    else:
        print(key)


@key_app.command("revoke", epilog="Example: mlops-ray key revoke web configs/factory_load.yaml")
def key_revoke(name: str, file: ProjectFile) -> None:
    """Take a key away; it is refused within a second."""
    keys.revoke(_open(file)[1], name)
    print(f"revoked {name}")


@key_app.command("list", epilog="Example: mlops-ray key list configs/factory_load.yaml")
def key_list(file: ProjectFile, as_json: Json = False) -> None:
    """The names and roles of the keys."""
    found = keys.names(_open(file)[1])
    if as_json:
        _print_json(found)
    else:
        _print_table(["name", "role"], [list(item) for item in found.items()])


@features_app.command("list", epilog="Example: mlops-ray features list configs/flights.yaml")
def features_list(file: ProjectFile, as_json: Json = False) -> None:
    """Every feature, what it is made of, and the hash of its definition, which is its identity."""
    found = _store(file).list()
    if as_json:
        _print_json(found)
    else:
        _print_table(["feature", "type", "definition", "identity"], [list(f.values()) for f in found])


@features_app.command(
    "describe", epilog="Example: mlops-ray features describe carrier_late_7d configs/flights.yaml"
)
def features_describe(name: str, file: ProjectFile, as_json: Json = False) -> None:
    """One feature, and the state of the history that it reads."""
    found = _store(file).describe(name)
    if as_json:
        _print_json(found)
    else:
        for key, value in found.items():
            print(f"{key:<14}{value}")


@features_app.command(
    "get",
    epilog="Example: mlops-ray features get configs/flights.yaml --spine rows.csv",
)
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

    made = _store(file).get(read_spine(spine), _instant(as_known_at))
    _print_set(made, as_json)


@features_app.command("materialize", epilog="Example: mlops-ray features materialize configs/flights.yaml")
def features_materialize(file: ProjectFile, as_json: Json = False) -> None:
    """Bring the online store up to what the histories know."""
    watermarks = {source: until.isoformat() for source, until in _store(file).materialize().items()}
    if as_json:
        _print_json({"watermarks": watermarks})
        return
    for source, until in watermarks.items():
        print(f"{source}: online up to {until}")
    if not watermarks:
        print("no feature reads a history")


@features_app.command(
    "export-feast", epilog="Example: mlops-ray features export-feast feast_repo configs/flights.yaml"
)
def features_export_feast(folder: Path, file: ProjectFile, as_json: Json = False) -> None:
    """Write a Feast repository of the features that Feast can say."""
    others = _store(file).export_feast(folder)
    if as_json:
        _print_json({"folder": str(folder), "not_exported": others})
    else:
        print(f"written to {folder}")
        for name, reason in others.items():
            print(f"not exported: {name} ({reason})")


@dataset_app.command(
    "rebuild", epilog="Example: mlops-ray dataset rebuild .mlops/datasets/NAME-0123456789ab.json"
)
def dataset_rebuild(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="The JSON file beside the set.")],
    project: Annotated[
        Path | None, typer.Option(help="The project file, where its features call functions of its own.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a training set again from its manifest, and check that it is the same."""
    from mlops_ray.features.dataset import rebuild

    functions = _open(project)[0].functions if project else frozenset()
    _print_set(rebuild(manifest, functions), as_json)


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
    try:
        app()
    except MlopsError as error:
        err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        err.print("stopped")
        sys.exit(interrupt.INTERRUPTED)


def _open(file: Path) -> tuple[Project, Storage]:
    # Functions that the file names may stand beside it, for this process and those that it starts.
    os.environ[SEARCH_PATH] = str(file.absolute().parent)
    project = config.load(file)
    return project, Storage.open(project.storage)


def _sources(project: Project, name: str | None) -> list[str]:
    if name is not None and name not in project.sources:
        raise UsageError(f"no source {name!r}{did_you_mean(name, project.sources)}")
    return list(project.sources) if name is None else [name]


def _store(file: Path) -> "FeatureStore":
    from mlops_ray.features.store import FeatureStore

    return FeatureStore(*_open(file))


def _instant(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--as-known-at: {text!r} is no instant; write e.g. 2026-11-01T00:00Z") from None
    if instant.tzinfo is None:
        # A date alone begins somewhere too.
        whole = text if "T" in text or " " in text else f"{instant.date()}T00:00"
        raise UsageError(f"--as-known-at: {text!r} carries no offset; write e.g. {whole}Z for UTC")
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        raise UsageError(f"--as-known-at: {text!r} lies outside the calendar") from None


def _print_set(made: "TrainingSet", as_json: bool) -> None:
    manifest = made.path.with_suffix(".json")
    if as_json:
        _print_json({"file": str(made.path), "manifest": str(manifest), "digest": made.manifest["digest"]})
    else:
        print(f"{made.frame.height:,} rows × {made.frame.width} columns")
        print(f"file       {made.path}")
        print(f"manifest   {manifest}")
        print(f"digest     {made.manifest['digest']}")


class _Terminal:
    """Progress of a run on a terminal; on anything else, nothing."""

    def __init__(self) -> None:
        self._shown = err.is_terminal
        self._status: Status | None = None
        self._stage = ""

    def __enter__(self) -> "_Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, stage: str) -> None:
        self._stage = stage
        if self._shown:
            self._status = err.status(f"[bold]{stage}[/bold]")
            self._status.start()

    def update(self, message: str) -> None:
        if self._status is not None:
            self._status.update(f"[bold]{self._stage}[/bold] {message}")

    def end(self, stage: str, message: str, seconds: float | None) -> None:
        self.close()
        if self._shown:
            took = "unchanged" if seconds is None else f"{seconds:.1f} s"
            err.print(f"{stage:<24}{took:>8}  {message}", markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def _print_json(document: Any) -> None:
    print(json.dumps(document))


def _print_table(columns: list[str], rows: list[list[Any]]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    out.print(table)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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


def _print_news(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(report)
    elif "error" in report:
        err.print(f"{report['source']}: {report['error']}", style="red", markup=False, soft_wrap=True)
    else:
        valid, quarantined = report["valid"], report["quarantined"]
        print(
            f"{report['made_at']} {report['source']}: {valid:,} rows, {quarantined:,} in quarantine",
            flush=True,
        )


def _print_pages(storage: Storage, what: str, names: Iterable[str]) -> None:
    for name in names:
        print(f"{name:<12}{storage.path('reports', f'{what}-{name}.html')}")


def _print_live(live: service.Live) -> None:
    trained = live.trained
    _print_table(["family", "trials", f"best {live.metric}", "seconds"], _families(trained["leaderboard"]))
    tested = {f"{trained['family']} (winner)": trained["metrics"], **trained["baselines"]}
    names = list(trained["metrics"])
    _print_table(
        ["test part", *names], [[who, *(scores[n] for n in names)] for who, scores in tested.items()]
    )
    for reason in trained["refused"]:
        out.print(f"not live: {reason}", markup=False)
    if live.unchanged:
        print(f"unchanged  {', '.join(live.unchanged)}")
    if not live.url.endswith(f":{head.HTTP_PORT}"):
        err.print(f"note: port {head.HTTP_PORT} is in use by another program; this service took another")
    print(f"version    {live.version} of {live.model}")
    print(f"address    {live.url}")
    print(f"dashboard  {live.dashboard}")
    print(f"try        {live.curl}", flush=True)


def _families(leaderboard: list[dict[str, Any]]) -> list[list[Any]]:
    """The best trial of each family, best first, with how many were tried and what they cost."""
    tried: dict[str, list[dict[str, Any]]] = {}
    for trial in leaderboard:
        tried.setdefault(trial["family"], []).append(trial)
    return [[f, len(ts), ts[0]["score"], sum(t["seconds"] for t in ts)] for f, ts in tried.items()]


def _print_status(found: dict[str, Any]) -> None:
    for name in ("model", "state", "url", "dashboard", "said"):
        if found.get(name):
            print(f"{name:<10} {found[name]}")
    for model in found.get("models", []):
        invalid = sum(value["count"] for value in model["invalid"])
        drifted = [column["column"] for column in model["drift"] if column["drifted"]]
        print(f"version    {model['version']} of {model['name']}, {model['state']} since {model['since']}")
        print(f"requests   {json.dumps(model['requests'])} by status, {model['rows']} rows")
        print(f"invalid    {invalid} values")
        print(f"drift      {', '.join(drifted) or 'none found'}")
