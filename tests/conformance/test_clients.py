"""Clients that are not ours, over real HTTP: all get the answers that the model gives in process."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import requests
import tritonclient.http as triton
from mlflow.deployments import PredictionsResponse
from mlflow.utils.proto_json_utils import dump_input_data
from tritonclient.utils import InferenceServerException

from benchmarks import peers
from mlops_ray.client import Client
from mlops_ray.errors import InvalidRowError
from tests.registry import made
from tests.serving.live import KSERVE, OUTCOMES, Service, listening, require_peer, service

#: How a column goes into a tensor: with NaN or an empty text where a value is missing.
TENSORS = {
    pl.Float64: ("FP64", np.float64, float("nan")),
    pl.Int64: ("FP64", np.float64, float("nan")),
    pl.Boolean: ("BYTES", np.object_, ""),
    pl.String: ("BYTES", np.object_, ""),
}


class Served:
    """A model that answers at an address, the rows to ask it for, and the answers of the model in process."""

    def __init__(self, at: Service, url: str) -> None:
        self.at, self.url, self.key, self.model = at, url, at.keys["predict"], at.model
        known = made.requests(40, seed=9)
        strange = known[:3].with_columns(
            lag=pl.lit(None, pl.Float64), hour=pl.lit(None, pl.Int64), holiday=pl.lit(None, pl.Boolean)
        )
        rows = pl.concat([known, strange, known[:2].with_columns(site=pl.lit("never seen"))])
        self.rows = rows.select(at.predictor.package.feature_set.request.names)
        answers = at.predictor.predict(self.rows).values
        self.expected: dict[str, list[Any]] = {"prediction": answers.tolist()}
        threshold = at.predictor.package.outcome.threshold
        if threshold is not None:
            self.expected["decision"] = (answers >= threshold).tolist()

    @property
    def text(self) -> pl.DataFrame:
        """The rows with their instants as text."""
        return self.rows.with_columns(pl.col("time").dt.to_string("iso:strict"))

    def tensors(self) -> list[dict[str, Any]]:
        """Each column as plain values and the datatype that holds them, missing ones included."""
        said = []
        for column in self.text.get_columns():
            datatype, _, missing = TENSORS[column.dtype]
            texts = column.cast(pl.String) if column.dtype == pl.Boolean else column
            values = [missing if value is None else value for value in texts.to_list()]
            said.append({"name": column.name, "datatype": datatype, "data": values})
        return said


@pytest.fixture(scope="module", params=sorted(OUTCOMES))
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    at = service(tmp_path_factory.mktemp(request.param), request.param)
    with listening(at) as url:
        yield Served(at, url)


def test_the_model_in_process_answers_every_row_and_not_all_alike(served: Served) -> None:
    answers = served.expected["prediction"]
    assert np.isfinite(answers).all()
    assert len(set(answers)) > 5


# ---------------------------------------------------------------- Triton's


@pytest.fixture
def client(served: Served) -> Iterator[Any]:
    made = triton.InferenceServerClient(served.url.removeprefix("http://"))
    yield made
    made.close()


def triton_inputs(served: Served, binary: bool) -> list[Any]:
    inputs = []
    for column in served.tensors():
        values = np.array(column["data"], np.float64 if column["datatype"] == "FP64" else np.object_)
        inputs.append(triton.InferInput(column["name"], [len(values), 1], column["datatype"]))
        inputs[-1].set_data_from_numpy(values.reshape(-1, 1), binary_data=binary)
    return inputs


@pytest.mark.parametrize("version", ["", "1"])
@pytest.mark.parametrize("binary_out", [False, True])
@pytest.mark.parametrize("binary_in", [False, True])
def test_triton_s_client_gets_the_model_s_answers(
    served: Served, client: Any, binary_in: bool, binary_out: bool, version: str
) -> None:
    wanted = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in served.expected]
    result = client.infer(
        served.model,
        triton_inputs(served, binary_in),
        model_version=version,
        outputs=wanted,
        request_id="t-1",
        headers={"authorization": f"Bearer {served.key}"},
    )
    assert {name: result.as_numpy(name).tolist() for name in served.expected} == served.expected
    named = [result.get_response()[name] for name in ("model_name", "model_version", "id")]
    assert named == [served.model, "1", "t-1"]


def test_triton_s_client_that_names_no_outputs_gets_all_of_them(served: Served, client: Any) -> None:
    headers = {"authorization": f"Bearer {served.key}"}
    result = client.infer(served.model, triton_inputs(served, True), headers=headers)
    assert {name: result.as_numpy(name).tolist() for name in served.expected} == served.expected


def test_triton_s_client_reads_health_and_metadata(served: Served, client: Any) -> None:
    headers = {"authorization": f"Bearer {served.key}"}
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(served.model)
    assert client.is_model_ready(served.model, "1")
    assert not client.is_model_ready(served.model, "2")
    assert client.get_server_metadata(headers)["extensions"] == ["binary_tensor_data"]
    for version in ("", "1"):
        metadata = client.get_model_metadata(served.model, version, headers)
        assert [column["name"] for column in metadata["inputs"]] == served.rows.columns
        assert [output["name"] for output in metadata["outputs"]] == list(served.expected)


def test_triton_s_client_shows_what_is_wrong(served: Served, client: Any) -> None:
    inputs = triton_inputs(served, True)
    with pytest.raises(InferenceServerException, match="a key is needed"):
        client.infer(served.model, inputs)
    with pytest.raises(InferenceServerException, match="column 'site': is missing"):
        client.infer(served.model, inputs[1:], headers={"authorization": f"Bearer {served.key}"})


# ---------------------------------------------------------------- KServe's


def test_kserve_s_client_gets_the_model_s_answers(served: Served, tmp_path: Path) -> None:
    require_peer("kserve")
    file = tmp_path / "asked.json"
    file.write_text(
        json.dumps({"url": served.url, "model": served.model, "key": served.key, "inputs": served.tensors()})
    )
    said = peers.run("kserve", KSERVE, file)
    assert said["answers"] == [served.expected] * 2
    assert said["named"] == [served.model, "k-1"]
    assert (said["live"], said["ready"], said["model ready"]) == (True, True, True)


# ---------------------------------------------------------------- MLflow's forms


def invoke(served: Served, body: str | bytes, media_type: str = "application/json") -> dict[str, Any]:
    headers = {"authorization": f"Bearer {served.key}", "content-type": media_type}
    reply = requests.post(f"{served.url}/v2/models/{served.model}/invocations", body, headers=headers)
    assert reply.status_code == 200, reply.text
    said = PredictionsResponse.from_json(reply.text)
    assert (said["model_name"], said["model_version"]) == (served.model, "1")
    return {name: said[f"{name}s"] for name in ("prediction", "decision") if f"{name}s" in said}


def as_pandas(served: Served) -> pd.DataFrame:
    """As pandas has rows with missing values: whole numbers become floats, and NaN is in them."""
    return pd.DataFrame(served.text.to_dicts())


def test_what_mlflow_s_scoring_client_sends_is_answered(served: Served) -> None:
    frame = as_pandas(served)
    body = dump_input_data(frame)
    assert "NaN" in body  # No JSON, and what it sends for a missing value.
    assert invoke(served, body) == served.expected
    assert (
        invoke(served, dump_input_data(frame.to_dict("records"), inputs_key="instances")) == served.expected
    )


def test_every_form_of_mlflow_gets_the_model_s_answers(served: Served) -> None:
    frame, rows = as_pandas(served), served.text
    split = json.loads(frame.to_json(orient="split"))
    forms = [
        {"dataframe_split": split},
        {"dataframe_records": json.loads(frame.to_json(orient="records"))},
        *({form: rows.to_dicts()} for form in ("instances", "inputs")),
        *({form: rows.to_dict(as_series=False)} for form in ("instances", "inputs")),
        {"instances": [list(row) for row in rows.rows()]},
        {"dataframe_split": {"columns": rows.columns[::-1], "data": [row[::-1] for row in rows.rows()]}},
    ]
    for form in forms:
        assert invoke(served, json.dumps(form)) == served.expected, form.keys()
    text = io.StringIO()
    # Whole numbers beside missing ones are floats in pandas, and 11.0 in a text is none.
    frame.convert_dtypes().to_csv(text, index=False)
    assert invoke(served, text.getvalue(), "text/csv") == served.expected
    assert invoke(served, rows.write_csv(), "text/csv; charset=utf-8") == served.expected


# ---------------------------------------------------------------- ours


def test_our_client_gets_the_model_s_answers_for_all_that_it_takes(served: Served) -> None:
    client = Client(served.url, served.model, key=served.key)
    for rows in (served.rows, served.rows.to_pandas(), served.rows.to_dicts()):
        answers = client.predict(rows)
        assert answers.predictions.tolist() == served.expected["prediction"]
        decisions = None if answers.decisions is None else answers.decisions.tolist()
        assert decisions == served.expected.get("decision")
    one_by_one = [client.predict(served.rows[at]).predictions.item() for at in range(served.rows.height)]
    assert one_by_one == served.expected["prediction"]
    with pytest.raises(InvalidRowError, match=r"row 1, column 'lag': '11\.0' is above"):
        client.predict(served.rows[:2].with_columns(lag=pl.Series([1.0, 11.0])))
