"""KServe's client against a v2 endpoint: the file named first says whom to ask, and what.

Prints whether the server and the model are ready, and the outputs with binary data and without. With
`openapi` in place of the file it prints the page of KServe's own v2 server.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


def main() -> None:
    said = (
        openapi() if sys.argv[1] == "openapi" else asyncio.run(ask(json.loads(Path(sys.argv[1]).read_text())))
    )
    print(json.dumps(said))


async def ask(given: dict[str, Any]) -> dict[str, Any]:
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    url, model = given["url"], given["model"]
    headers = {"authorization": f"Bearer {given['key']}"}
    answers = []
    for binary in (False, True):
        inputs = [_input(binary=binary, **column) for column in given["inputs"]]
        request = InferRequest(model, inputs, "k-1", parameters={"binary_data_output": binary})
        reply = await client.infer(url, request, model_name=model, headers=dict(headers))
        answers.append({output.name: output.as_numpy().ravel().tolist() for output in reply.outputs})
    return {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model ready": await client.is_model_ready(url, model),
        "answers": answers,
        "named": [reply.model_name, reply.id],
    }


def _input(name: str, datatype: str, data: list[Any], *, binary: bool) -> InferInput:
    dtypes = {"FP64": np.float64, "INT64": np.int64, "BOOL": np.bool_, "BYTES": np.object_}
    made = InferInput(name, [len(data)], datatype)
    made.set_data_from_numpy(np.array(data, dtypes[datatype]), binary_data=binary)
    return made


def openapi() -> dict[str, Any]:
    from fastapi import FastAPI
    from kserve.model_repository import ModelRepository
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.model_repository_extension import ModelRepositoryExtension
    from kserve.protocol.rest.v2_endpoints import register_v2_endpoints

    app, models = FastAPI(), ModelRepository()
    register_v2_endpoints(app, DataPlane(models), ModelRepositoryExtension(models))
    return dict(app.openapi())


main()
