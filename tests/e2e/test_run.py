"""`mlops-ray run` on the example: what it says is checked by other means, its service by real clients."""

import gzip
import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import psutil
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from mlops_ray import config
from mlops_ray.client import Client
from mlops_ray.data import prediction_log
from mlops_ray.errors import InvalidRowError, UnauthorizedError
from mlops_ray.features.definitions import compile_features
from mlops_ray.features.history import History, read
from mlops_ray.features.lookup import point_in_time
from mlops_ray.registry.predictor import Predictor

from ..conftest import EXAMPLE, ROOT, require
from .conftest import Service, clean_environment, mlops, processes_of

MODEL = "factory-load"
LAST = datetime(2017, 1, 1, 23, tzinfo=UTC)


def ask(
    service: Service, path: str, body: Any = None, *, key: str | None = None, **headers: str
) -> tuple[int, Any]:
    """Status and document of a reply; `key` is the local one unless given, none if empty."""
    key = service.key if key is None else key
    sent = {"Content-Type": "application/json", **headers} | (
        {"Authorization": f"Bearer {key}"} if key else {}
    )
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(service.url + path, data=data, headers=sent)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, _parsed(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, _parsed(error.read())


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode()


def infer(sites: list[str], times: list[str]) -> dict[str, Any]:
    return {
        "id": "mine",
        "inputs": [
            {"name": "site", "datatype": "BYTES", "shape": [len(sites)], "data": sites},
            {"name": "time", "datatype": "BYTES", "shape": [len(times)], "data": times},
        ],
    }


@pytest.fixture(scope="module")
def hourly() -> pd.DataFrame:
    """Hourly means by interval end, computed with pandas alone."""
    source = config.load(EXAMPLE, {}).sources["meter"]
    assert source.path is not None
    with gzip.open(source.path[0].path) as file:
        raw = pd.read_csv(file, sep=";")
    local = pd.to_datetime(raw.pop("time"), format="%d.%m.%Y %H:%M")
    raw.index = local.dt.tz_localize("Europe/Berlin", ambiguous="infer").dt.tz_convert("UTC")
    return raw.resample("1h", label="right", closed="left").mean()


def test_the_naive_error_is_what_pandas_says(service: Service, hourly: pd.DataFrame) -> None:
    start = pd.Timestamp("2016-11-01 01:00", tz="Europe/Berlin")
    test = hourly[hourly.index >= start]
    last_week = hourly.shift(freq="7D").reindex(test.index)
    mae = (test - last_week).abs().to_numpy().mean()
    said = service.result["baselines"]["last_season"]
    assert said["mae"] == pytest.approx(mae, rel=1e-9)
    assert said["relative_mae"] == pytest.approx(mae / test.to_numpy().mean(), rel=1e-9)
    assert round(said["relative_mae"], 3) == 0.187


def test_the_winner_s_error_is_what_pandas_says_and_good_enough(
    service: Service, hourly: pd.DataFrame
) -> None:
    """Features recomputed by pandas for the test part, predictions of the registered model through MLflow."""
    import mlflow

    start = pd.Timestamp("2016-11-01 01:00", tz="Europe/Berlin")
    stacked = {
        f"load_{name}": frame.loc[start:].stack()
        for name, frame in {
            "1d_ago": hourly.shift(freq="1D").reindex(hourly.index),
            "2d_ago": hourly.shift(freq="2D").reindex(hourly.index),
            "7d_ago": hourly.shift(freq="7D").reindex(hourly.index),
            "mean_7d": hourly.rolling("7D").mean().shift(freq="1D").reindex(hourly.index),
            "mean_30d": hourly.rolling("30D").mean().shift(freq="1D").reindex(hourly.index),
        }.items()
    }
    rows = pd.DataFrame(stacked)
    truth = hourly.loc[start:].stack().to_numpy()
    begin = (rows.index.get_level_values(0) - pd.Timedelta("1h")).tz_convert("Europe/Berlin")
    # The public holidays of all of Germany in the last two months of 2016.
    holidays = [pd.Timestamp(day).date() for day in ("2016-12-25", "2016-12-26")]
    rows = rows.assign(
        site=rows.index.get_level_values(1).astype(str),
        hour=begin.hour.astype("int64"),
        weekday=(begin.weekday + 1).astype("int64"),
        holiday=np.isin(begin.date, holidays),
    ).reset_index(drop=True)
    mlflow.set_tracking_uri(f"sqlite:///{service.storage.path('mlflow.db')}")
    model = mlflow.pyfunc.load_model(f"models:/{MODEL}@champion")
    predicted = np.clip(model.predict(rows), 0, 1.5)
    mae = np.abs(predicted - truth).mean()
    said = service.result["metrics"]
    assert said["mae"] == pytest.approx(mae, rel=1e-6)
    assert said["relative_mae"] == pytest.approx(mae / truth.mean(), rel=1e-6)
    assert said["relative_mae"] <= 0.124


def test_the_job_tells_where_its_seconds_went(service: Service) -> None:
    """A slow machine is no defect, so nothing is asserted of time but that every second is accounted for."""
    seconds = service.result["seconds"]
    stages = {
        "ray",
        "ingest meter",
        f"features {MODEL}",
        f"train {MODEL}",
        "push",
        "serve",
        "release",
        "first prediction",
    }
    assert set(seconds) == stages
    assert 0 < sum(seconds.values()) < service.wall_s


def test_every_trial_is_in_mlflow_with_its_parent(service: Service) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{service.storage.path('mlflow.db')}")
    experiment = client.get_experiment_by_name(MODEL)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    trials = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(parents) == 1
    assert parents[0].data.metrics["mae"] == pytest.approx(service.result["metrics"]["mae"])
    assert len(trials) == 20
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {parents[0].info.run_id}
    assert {run.data.params["family"] for run in trials} == {"lasso", "ridge", "random_forest", "xgboost"}


def test_a_package_holds_no_pickle_and_no_row_of_data(service: Service) -> None:
    files = [path for path in service.storage.path("artifacts").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if path.suffix in {".pkl", ".pickle", ".joblib", ".cloudpickle"}]
    assert not [path for path in files if path.read_bytes()[:2] in (b"\x80\x04", b"\x80\x05")]
    (training_set,) = service.storage.path("datasets").glob("*.parquet")
    known = set(pl.read_parquet(training_set)["load_mean_30d"])
    examples = [json.loads(path.read_text())["rows"] for path in files if path.name == "examples.json"]
    assert examples
    assert not [row for rows in examples for row in rows if row["load_mean_30d"] in known]


def test_a_second_run_does_only_what_changed_and_says_so(service: Service) -> None:
    again = mlops("run", service.file, "--detach", "--json")
    assert again.returncode == 0, again.stderr
    result = json.loads(again.stdout.splitlines()[-1])
    assert result["version"] == service.result["version"]
    assert result["metrics"] == service.result["metrics"]
    unchanged = {name for name, seconds in result["seconds"].items() if seconds == 0}
    assert unchanged >= {"ingest meter", f"features {MODEL}", f"train {MODEL}"}


def test_the_curl_line_works_when_pasted(service: Service) -> None:
    require("curl")
    said = mlops("run", service.file, "--detach")
    assert said.returncode == 0, said.stderr
    assert "unchanged  ingest meter, features factory-load, train factory-load" in said.stdout
    line = re.search(r"^try +(curl .*)$", said.stdout, re.MULTILINE)
    assert line is not None, said.stdout
    reply = subprocess.run(
        line[1], shell=True, capture_output=True, text=True, check=True, env=clean_environment()
    )
    assert 0 <= json.loads(reply.stdout)["outputs"][0]["data"][0] <= 1.5


def test_the_endpoint_answers_what_the_model_says_in_every_form(service: Service) -> None:
    sites = ["BL-H", "WB-H", "G1-B"]
    times = [(LAST - timedelta(hours=h)).isoformat() for h in (0, 5, 23)]
    expected = in_process(service, sites, times)
    status, reply = ask(service, f"/v2/models/{MODEL}/infer", infer(sites, times))
    assert status == 200
    assert reply["model_name"] == MODEL
    assert reply["model_version"] == str(service.result["version"])
    assert reply["id"] == "mine"
    np.testing.assert_allclose(reply["outputs"][0]["data"], expected, rtol=1e-9)
    records = [{"site": s, "time": t} for s, t in zip(sites, times, strict=True)]
    status, reply = ask(service, f"/v2/models/{MODEL}/invocations", {"dataframe_records": records})
    assert status == 200
    np.testing.assert_allclose(reply["predictions"], expected, rtol=1e-9)


def in_process(service: Service, sites: list[str], times: list[str]) -> np.ndarray:
    """The answers without server, store or cluster: history, offline join, package."""
    project = config.load(service.file, {})
    features = compile_features(project)
    view = features.tables[0]
    table = read(History.of(service.storage.path("features"), view).snapshot())
    stamps = pl.Series(times).str.to_datetime(time_unit="us", time_zone="UTC")
    rows = point_in_time(pl.DataFrame({"site": sites, "time": stamps}), {"meter": table}, features)
    release = service.storage.read_json("release", f"{MODEL}.json")
    predictor = Predictor.load(service.storage.path(release["champion"]["package"]), None)
    return predictor.predict_features(rows)


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_speaks_with_it(service: Service, binary: bool) -> None:
    sites, times = ["BL-H", "G0-A"], [LAST.isoformat()] * 2
    inputs = []
    for name, values in (("site", sites), ("time", times)):
        tensor = triton.InferInput(name, [2], "BYTES")
        tensor.set_data_from_numpy(np.array(values, dtype=np.object_), binary_data=binary)
        inputs.append(tensor)
    headers = {"Authorization": f"Bearer {service.key}"}
    with triton.InferenceServerClient(service.url.removeprefix("http://")) as client:
        assert client.is_server_live(headers=headers)
        assert client.is_server_ready(headers=headers)
        assert client.is_model_ready(MODEL, headers=headers)
        names = [column["name"] for column in client.get_model_metadata(MODEL, headers=headers)["inputs"]]
        assert names == ["site", "time"]
        output = client.get_model_metadata(MODEL, headers=headers)["outputs"][0]["name"]
        wanted = [triton.InferRequestedOutput(output, binary_data=binary)]
        answer = client.infer(MODEL, inputs, outputs=wanted, headers=headers)
        np.testing.assert_allclose(answer.as_numpy(output), in_process(service, sites, times), rtol=1e-6)
        unnamed = client.infer(MODEL, inputs, headers=headers)
        np.testing.assert_allclose(unnamed.as_numpy(output), in_process(service, sites, times), rtol=1e-6)


def test_a_stock_grpc_client_gets_the_same_answers(service: Service) -> None:
    sites, times = ["BL-H", "G0-A"], [LAST.isoformat()] * 2
    inputs = []
    for name, values in (("site", sites), ("time", times)):
        tensor = triton_grpc.InferInput(name, [2], "BYTES")
        tensor.set_data_from_numpy(np.array(values, dtype=np.object_))
        inputs.append(tensor)
    headers = {"authorization": f"Bearer {service.key}"}
    with triton_grpc.InferenceServerClient(service.result["grpc"]) as client:
        assert client.is_server_live()
        assert client.is_model_ready(MODEL)
        names = [column.name for column in client.get_model_metadata(MODEL, headers=headers).inputs]
        assert names == ["site", "time"]
        answer = client.infer(MODEL, inputs, headers=headers)
        expected = in_process(service, sites, times)
        np.testing.assert_allclose(answer.as_numpy("prediction"), expected, rtol=1e-6)
        with pytest.raises(InferenceServerException, match="a key is needed"):
            client.infer(MODEL, inputs)


def test_contributions_come_to_the_prediction(service: Service) -> None:
    body = infer(["BL-H"], [LAST.isoformat()]) | {"parameters": {"explain": True}}
    status, reply = ask(service, f"/v2/models/{MODEL}/infer", body)
    assert status == 200, reply
    prediction, explained = reply["outputs"]
    about = explained["parameters"]
    assert explained["shape"] == [1, len(about["features"])]
    assert "load_7d_ago" in about["features"]
    assert about["base"] + sum(explained["data"]) == pytest.approx(prediction["data"][0], rel=1e-4)


def test_what_was_answered_is_in_the_prediction_log_with_its_watermark(service: Service) -> None:
    body = infer(["BL-H"], [LAST.isoformat()])
    _, reply = ask(service, f"/v2/models/{MODEL}/infer", body, **{"X-Request-ID": "logged"})

    def logged() -> dict[str, Any] | None:
        try:
            log = prediction_log.read(service.storage, MODEL)
        except FileNotFoundError:
            time.sleep(0.2)
            return None
        rows = log.filter(pl.col("request_id") == "logged").collect()
        if not rows.height:
            time.sleep(0.2)
            return None
        return rows.to_dicts()[0]

    row = eventually(logged, tries=150)
    assert row["prediction"] == reply["outputs"][0]["data"][0]
    assert (row["request.site"], row["request.time"]) == ("BL-H", LAST)
    assert row["watermark"] >= LAST - timedelta(days=1)
    assert row["feature.load_7d_ago"] is not None


def test_our_client_gets_the_same_answers_and_is_told_what_is_wrong(service: Service) -> None:
    sites, times = ["BL-H", "G0-A"], [LAST, LAST - timedelta(hours=5)]
    client = Client(service.url, MODEL, key=service.key)
    found = client.predict(pd.DataFrame({"site": sites, "time": times}))
    expected = in_process(service, sites, [time.isoformat() for time in times])
    np.testing.assert_allclose(found.predictions, expected, rtol=1e-9)
    assert (found.version, found.decisions) == (str(service.result["version"]), None)
    assert [column["name"] for column in client.metadata()["inputs"]] == ["site", "time"]
    with pytest.raises(InvalidRowError, match="row 1, column 'time'"):
        client.predict([{"site": "BL-H", "time": LAST.isoformat()}, {"site": "BL-H", "time": "soon"}])
    with pytest.raises(UnauthorizedError):
        Client(service.url, MODEL).predict([{"site": "BL-H", "time": LAST.isoformat()}])


BAD = {
    "no time": ({"dataframe_records": [{"site": "BL-H"}]}, 422, "column 'time'"),
    "a time that is none": (infer(["BL-H"], ["noon"]), 422, "row 0, column 'time'"),
    "the second row": (infer(["BL-H", None], [LAST.isoformat()] * 2), 422, "row 1, column 'site'"),  # type: ignore[list-item]
    "past the watermark": (infer(["BL-H"], ["2017-01-02T00:00:00Z"]), 422, "row 0, column 'time'"),
    "no JSON": (b"{", 400, "JSON"),
    "a list": ([1], 400, ""),
    "lengths differ": (infer(["BL-H"], [LAST.isoformat()] * 2), 400, ""),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_gets_a_clear_error(service: Service, what: str) -> None:
    body, expected, says = BAD[what]
    records = isinstance(body, dict) and "dataframe_records" in body
    status, reply = ask(service, f"/v2/models/{MODEL}/{'invocations' if records else 'infer'}", body)
    assert status == expected, reply
    assert says in reply["error"]


def test_nobody_predicts_without_a_key_and_a_revoked_one_is_refused(service: Service) -> None:
    body = infer(["BL-H"], [LAST.isoformat()])
    path = f"/v2/models/{MODEL}/infer"
    assert ask(service, path, body, key="")[0] == 401
    assert ask(service, path, body, key="wrong")[0] == 401
    made = json.loads(mlops("key", "add", "reader", service.file, "--role", "read", "--json").stdout)
    assert ask(service, path, body, key=made["key"])[0] == 403
    made = json.loads(mlops("key", "add", "web", service.file, "--role", "predict", "--json").stdout)
    assert ask(service, path, body, key=made["key"])[0] == 200
    assert mlops("key", "revoke", "web", service.file).returncode == 0
    for _ in range(200):
        if ask(service, path, body, key=made["key"])[0] == 401:
            break
    else:
        pytest.fail("a revoked key still works after 200 requests")


def test_health_is_open_and_everything_else_is_not(service: Service) -> None:
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert ask(service, path, key="")[0] == 200
    for path in ("/v2/models", "/metrics", "/dashboard/data.json", f"/v2/models/{MODEL}"):
        assert ask(service, path, key="")[0] == 401, path
    assert ask(service, "/nothing")[0] == 404


def test_the_monitor_counts_requests_and_shows_them(service: Service) -> None:
    body = infer(["BL-H"] * 60, [LAST.isoformat()] * 60)
    for _ in range(5):
        assert ask(service, f"/v2/models/{MODEL}/infer", body)[0] == 200
    ask(service, f"/v2/models/{MODEL}/infer", infer(["BL-H"], ["noon"]))
    document = eventually(lambda: _counted(service))
    assert document["state"] == "live"
    _, page = ask(service, "/dashboard")
    assert "<html" in page
    assert not re.findall(r"(?:src|href)=[\"']https?://", page)
    _, metrics = ask(service, "/metrics")
    assert re.search(r'mlops_requests_total\{.*code="200".*\} \d+', metrics)


def test_all_that_lies_in_the_storage_is_listed_in_the_readme(service: Service) -> None:
    _, _, text = (ROOT / "README.md").read_text().partition("## How it is built")
    listed = set(re.findall(r"`([\w.]+/?)`", text.partition("\n\n")[2].partition("\nRequests")[0]))
    found = {
        f"{path.name}/" if path.is_dir() else re.sub("-(wal|shm|journal)$", "", path.name)
        for path in service.storage.root.iterdir()
        if path.suffix != ".lock" and not path.name.startswith(".")
    }
    assert found - listed == set()


def _counted(service: Service) -> dict[str, Any] | None:
    document = json.loads(mlops("status", service.file, "--json").stdout)
    text = json.dumps(document)
    return document if MODEL in text and '"type"' in text else None


def eventually(found: Any, tries: int = 40) -> Any:
    """What `found` returns as soon as it is something; each try takes a moment of its own."""
    for _ in range(tries):
        if (result := found()) is not None:
            return result
    raise AssertionError("it did not come about")


def test_a_past_period_goes_through_the_monitor_as_if_it_were_live(service: Service) -> None:
    asked = ("--from", "2016-11-07T00:00Z", "--to", "2016-11-21T00:00Z")
    done = mlops("replay", service.file, *asked, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [look["rows"] for look in found["looks"]] == [24 * 21] * 14
    assert found["outside"] == 0
    abouts = {finding["about"] for look in found["looks"] for finding in look["findings"]}
    assert {"load_1d_ago by site", "prediction by site", "realised mae", "realised mae by site"} <= abouts
    assert found["quality"]["mae"]["realised"]
    page = service.storage.path("reports", f"replay-{MODEL}.html")
    assert mlops("replay", service.file, *asked).returncode == 0
    assert "Monitoring of factory-load" in page.read_text()
    # The service's own record is as it was.
    assert not (service.storage.root / "monitor" / MODEL / "looks.jsonl").exists()
    wrong = mlops("replay", service.file, "--from", "2020-01-01T00:00Z")
    assert wrong.returncode != 0
    assert "no window of 'factory-load' closes then" in wrong.stderr


def test_the_front_end_listens_on_loopback_alone(service: Service) -> None:
    """The port that callers are told of; the ports beside it are the test's of cluster/local.py."""
    ours = {process.pid for process in processes_of(service.storage.root)}
    port = int(service.url.rsplit(":", 1)[1])
    listening = [
        c.laddr for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in ours
    ]
    assert {address.ip for address in listening if address.port == port} == {"127.0.0.1"}
