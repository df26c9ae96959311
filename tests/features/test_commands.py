"""The feature store as a user meets it: its commands, what they write, and what a mistake costs."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mlops_ray import cli
from mlops_ray.cluster import local, service
from mlops_ray.expressions import SEARCH_PATH

from ..e2e.conftest import mlops

PROJECT = """
project: shops
sources:
  sales:
    path: sales.csv
    entity: shop
    event_time: {column: time}
    columns:
      shop: {type: category}
      staff: {type: int}
      amount: {type: float, min: 0}
      profit: {type: float}
  shops: {path: shops.csv, entity: id, time: none, columns: {id: {type: category}, kind: {type: category}}}
features:
  turnover:
    source: sales
    features:
      sum_1d: {window: {of: amount, agg: sum, over: 1d}}
      count_1d: {window: {of: amount, agg: count, over: 1d}}
      newest: {latest: amount}
  place: {source: shops, join_keys: {shop: id}, features: {kind: {latest: kind}}}
  asked: {on_request: {per_head: {expr: 100.0 / staff}, hour: {hour_of: time}}}
target: {source: sales, expr: profit, task: regression}
"""
SALES = """shop,time,staff,amount,profit
a,2026-01-01T10:00Z,2,1.5,1
a,2026-01-02T09:00Z,2,2.5,1
a,2026-01-02T10:00Z,2,4.0,2
b,2026-01-02T10:00Z,3,8.0,3
b,2026-01-02T11:00Z,3,-1,-2
"""
SPINE = """note,shop,time,staff
x,b,2026-01-02T12:00+02:00,4
y,a,2026-01-02T10:00Z,2
z,a,2026-01-02T09:59:59.999999Z,2
u,stranger,2026-01-02T10:00Z,5
x,b,2026-01-02T12:00+02:00,4
"""
#: What the spine's rows are answered: the features in the order of the project file.
ANSWERS = [
    (8.0, 1, 8.0, "books", 25.0, 10),
    (6.5, 2, 4.0, "food", 50.0, 10),
    (4.0, 2, 2.5, "food", 50.0, 9),
    (None, 0, None, None, 20.0, 10),
    (8.0, 1, 8.0, "books", 25.0, 10),
]


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `ingest` said, by the real command on a cluster of its own, and the project file."""
    folder = tmp_path_factory.mktemp("shops")
    (folder / "project.yaml").write_text(PROJECT)
    (folder / "sales.csv").write_text(SALES)
    (folder / "shops.csv").write_text("id,kind\na,food\nb,books\n")
    done = mlops("ingest", folder / "project.yaml", "--json")
    assert done.returncode == 0, done.stderr
    return {"file": folder / "project.yaml", **json.loads(done.stdout.splitlines()[-1])}


@pytest.fixture
def file(ingested: dict[str, Any]) -> Path:
    return Path(ingested["file"])


@pytest.fixture
def spine(tmp_path: Path) -> Path:
    (tmp_path / "spine.csv").write_text(SPINE)
    return tmp_path / "spine.csv"


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.status == 0, self.err
        return json.loads(self.out)


Command = Callable[..., Done]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command's own entry point, in this process: starting another takes seconds."""
    monkeypatch.delenv(SEARCH_PATH, raising=False)

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["mlops-ray", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)

    return run


def test_ingest_tells_what_became_of_the_rows_of_every_source(ingested: dict[str, Any]) -> None:
    counts = {
        name: tuple(ingested[name][key] for key in ("rows_in", "valid", "quarantined"))
        for name in ("sales", "shops")
    }
    assert counts == {"sales": (5, 4, 1), "shops": (2, 2, 0)}
    (check,) = ingested["sales"]["checks"]
    assert (check["rule"], check["severity"], check["failed"]) == ("min", "reject", 1)
    assert not ingested["sales"]["unchanged"]


def test_ingest_of_sources_that_did_not_change_says_so_and_starts_nothing(
    file: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "start", lambda _: pytest.fail("a cluster was started"))
    monkeypatch.setattr(service, "_leave_cluster", lambda *_, **__: None)
    done = command("ingest", file)
    assert done.status == 0, done.err
    sources = [line for line in done.out.splitlines() if "sales" in line or "shops" in line]
    assert ["unchanged" in line for line in sources] == [True, True], done.out


def test_list_names_every_feature_and_what_it_is_made_of(file: Path, command: Command) -> None:
    found = {feature["name"]: feature for feature in command("features", "list", file, "--json").json}
    assert list(found) == ["sum_1d", "count_1d", "newest", "kind", "per_head", "hour"]
    assert found["sum_1d"]["definition"] == "sum of sales.amount over 1d"
    assert (found["count_1d"]["type"], found["kind"]["type"]) == ("int", "category")
    assert len({feature["identity"] for feature in found.values()}) == len(found)
    shown = command("features", "list", file)
    assert shown.status == 0
    assert all(name in shown.out for name in found)


def test_describe_tells_how_far_history_and_online_store_are(file: Path, command: Command) -> None:
    watermarks = command("features", "materialize", file, "--json").json["watermarks"]
    told = command("features", "describe", "sum_1d", file, "--json").json
    assert (told["source"], told["keys"], told["row_versions"]) == ("sales", {"shop": "shop"}, 4)
    assert told["online_up_to"] == told["committed_at"]
    assert command("features", "describe", "kind", file, "--json").json["keys"] == {"shop": "id"}
    assert watermarks["sales"] == told["committed_at"]
    assert "online_up_to" in command("features", "describe", "sum_1d", file).out
    assert command("features", "materialize", file, "--json").json["watermarks"] == watermarks


def test_get_answers_every_row_of_a_spine_in_its_order(
    file: Path, spine: Path, command: Command, tmp_path: Path
) -> None:
    made = command("features", "get", file, "--spine", spine, "--json").json
    frame = pl.read_parquet(made["file"])
    assert frame["note"].to_list() == list("xyzux"), "what else the spine has is passed through"
    assert frame.select("sum_1d", "count_1d", "newest", "kind", "per_head", "hour").rows() == ANSWERS
    pl.read_csv(spine).with_columns(pl.col("time").str.to_datetime(time_zone="UTC")).write_parquet(
        tmp_path / "spine.parquet"
    )
    again = command("features", "get", file, "--spine", tmp_path / "spine.parquet", "--json").json
    names = ["sum_1d", "count_1d", "newest", "kind", "per_head", "hour"]
    assert pl.read_parquet(again["file"]).select(names).equals(frame.select(names))


def test_rebuild_makes_the_same_set_from_its_manifest(file: Path, spine: Path, command: Command) -> None:
    made = command("features", "get", file, "--spine", spine, "--json").json
    before = pl.read_parquet(made["file"])
    Path(made["file"]).unlink()
    done = mlops("dataset", "rebuild", made["manifest"], "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == made
    assert pl.read_parquet(made["file"]).equals(before)


def test_what_is_asked_as_known_at_an_instant_is_what_was_known_then(
    file: Path, spine: Path, command: Command
) -> None:
    told = command("features", "describe", "sum_1d", file, "--json").json
    commit = datetime.fromisoformat(told["committed_at"])
    newest = command("features", "get", file, "--spine", spine, "--json").json
    for moment, is_known in ((commit, True), (commit - timedelta(microseconds=1), False)):
        made = command(
            "features", "get", file, "--spine", spine, "--as-known-at", moment.isoformat(), "--json"
        ).json
        frame = pl.read_parquet(made["file"])
        assert frame["sum_1d"].to_list() == [row[0] if is_known else None for row in ANSWERS]
        assert frame["hour"].to_list() == [row[5] for row in ANSWERS]
        manifest = json.loads(Path(made["manifest"]).read_bytes())
        assert manifest["as_of"]["sales"]["known_at"] == moment.isoformat()
        assert command("dataset", "rebuild", made["manifest"], "--json").json == made
    assert pl.read_parquet(newest["file"])["sum_1d"].to_list() == [row[0] for row in ANSWERS]


# ---------------------------------------------------------------- mistakes


def _future() -> str:
    return (datetime.now(UTC) + timedelta(days=1)).isoformat()


#: What is wrong: the spine that is asked, more arguments of `features get`, the exit status, the sentence.
MISTAKES: dict[str, tuple[str, list[str], int, str]] = {
    "a column is missing": (
        SPINE.replace("shop", "shopp"), [], 1, "the spine lacks shop; it has note, shopp, time, staff",
    ),
    "times without an offset": (SPINE.replace(".999999Z", ""), [], 1, "a time is written with its offset"),
    "a value of another type": (SPINE.replace(",5", ",five"), [], 1, "row 4, column 'staff'"),
    "a time is missing": (SPINE.replace("2026-01-02T10:00Z,5", ",5"), [], 1, "row 4, column 'time'"),
    "a column called like a feature": (SPINE.replace("note", "newest"), [], 1, "like features: newest"),
    "rows of another width": (SPINE + "1,2,3,4,5,6\n", [], 1, "spine.csv, row 6: has 6 fields"),
    "a column twice": (SPINE.replace("note", "staff"), [], 1, "column 'staff': stands twice in the header"),
    "an empty file": ("", [], 1, "spine.csv: cannot be read: empty CSV"),
    "an instant in the future": (
        SPINE, ["--as-known-at", _future()], 1, "may still come in; leave the instant out",
    ),
    "an instant without an offset": (
        SPINE, ["--as-known-at", "2026-01-02T10:00"], 2, "carries no offset; write e.g. 2026-01-02T10:00Z",
    ),
    "a date for an instant": (
        SPINE, ["--as-known-at", "2026-01-02"], 2, "carries no offset; write e.g. 2026-01-02T00:00Z",
    ),
    "an instant outside the calendar": (
        SPINE, ["--as-known-at", "0001-01-01T00:00+23:59"], 2, "lies outside the calendar",
    ),
    "no instant": (SPINE, ["--as-known-at", "yesterday"], 2, "--as-known-at: 'yesterday' is no instant"),
}  # fmt: skip


def check_sentence(done: Done, status: int, says: str) -> None:
    assert done.status == status
    (sentence,) = done.err.splitlines()
    assert sentence.startswith("error: ")
    assert says in sentence
    assert not done.out


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_in_a_spine_costs_one_sentence_and_writes_nothing(
    what: str, file: Path, tmp_path: Path, command: Command
) -> None:
    rows, arguments, status, says = MISTAKES[what]
    (tmp_path / "spine.csv").write_text(rows)
    before = sorted(file.parent.rglob("*.json"))
    check_sentence(
        command("features", "get", file, "--spine", tmp_path / "spine.csv", *arguments), status, says
    )
    assert sorted(file.parent.rglob("*.json")) == before


@pytest.mark.parametrize("name", ["absent.csv", "absent.parquet", "project.yaml", ""])
def test_what_is_no_spine_is_said_in_a_sentence(name: str, file: Path, command: Command) -> None:
    check_sentence(command("features", "get", file, "--spine", file.parent / name), 1, "cannot be read")


def test_an_unknown_feature_is_answered_with_the_nearest(file: Path, command: Command) -> None:
    done = command("features", "describe", "sum_1w", file)
    check_sentence(done, 2, "no feature is called 'sum_1w'; did you mean 'sum_1d'?")


@pytest.mark.parametrize(
    "arguments",
    [
        ["features"],
        ["features", "get", "x.yaml"],
        ["features", "lst", "x.yaml"],
        ["features", "describe", "x"],
        ["dataset", "rebuild"],
    ],
)
def test_a_command_called_wrongly_says_how_to_call_it(arguments: list[str], command: Command) -> None:
    done = command(*arguments)
    assert done.status == 2
    assert "Usage: " in done.out + done.err
    assert "Traceback" not in done.out + done.err


@pytest.mark.parametrize("arguments", [["list"], ["materialize"], ["get", "--spine", "x.csv"]])
def test_a_project_file_that_is_not_there_is_said_in_a_sentence(
    arguments: list[str], tmp_path: Path, command: Command
) -> None:
    name, *rest = arguments
    check_sentence(
        command("features", name, tmp_path / "absent.yaml", *rest), 2, "cannot read the project file"
    )


def test_what_was_never_ingested_is_said_in_a_sentence(tmp_path: Path, spine: Path, command: Command) -> None:
    (tmp_path / "project.yaml").write_text(PROJECT)
    for arguments in (["materialize"], ["get", "--spine", spine]):
        name, *rest = arguments
        done = command("features", name, tmp_path / "project.yaml", *rest)
        check_sentence(done, 1, "there is no history of 'sales' yet; ingest it first")
    told = command("features", "describe", "sum_1d", tmp_path / "project.yaml", "--json").json
    assert (told["row_versions"], told["committed_at"], told["online_up_to"]) == (0, None, None)


def test_an_online_store_that_does_not_answer_is_said_without_its_password(
    file: Path, tmp_path: Path, command: Command
) -> None:
    other = file.parent / "elsewhere.yaml"
    other.write_text(f"online: redis://somebody:hush@127.0.0.1:1/0\n{PROJECT}")
    for arguments in (["features", "materialize"], ["features", "describe", "sum_1d"]):
        done = command(*arguments, other)
        check_sentence(done, 1, "the online store redis://127.0.0.1:1/0 does not answer")
        assert "hush" not in done.err


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"features": 1}'])
def test_what_is_no_manifest_is_said_in_a_sentence(
    text: str, file: Path, spine: Path, command: Command
) -> None:
    made = command("features", "get", file, "--spine", spine, "--json").json
    other = Path(made["manifest"]).with_name("other.json")
    other.write_text(text)
    check_sentence(command("dataset", "rebuild", other), 1, "other.json")


def test_a_manifest_that_is_not_there_makes_no_folder(tmp_path: Path, command: Command) -> None:
    check_sentence(command("dataset", "rebuild", tmp_path / "no" / "such" / "x.json"), 1, "no such manifest")
    assert not list(tmp_path.iterdir())


def test_the_help_of_get_says_what_a_spine_holds(command: Command) -> None:
    said = " ".join(command("features", "get", "--help").out.split())
    for words in (
        "the keys",
        "target time",
        "the target source's time column",
        "on-request features",
        "an offset",
    ):
        assert words in said
