"""FastAPI as users write a model server: pydantic for a row, one uvicorn. Arguments: MODEL PORT."""

import sys

import numpy as np
import uvicorn
import xgboost
from fastapi import FastAPI
from pydantic import BaseModel


class Row(BaseModel):
    x0: float
    x1: float
    x2: float
    x3: float
    x4: float
    x5: float
    x6: float
    x7: float
    x8: float
    x9: float
    x10: float
    x11: float


class Prediction(BaseModel):
    prediction: float


app = FastAPI()
booster = xgboost.Booster({"nthread": 1}, model_file=sys.argv[1])


# Not a plain function, which FastAPI would hand to a thread: that costs more than the model.
@app.post("/predict")
async def predict(row: Row) -> Prediction:
    values = np.array([list(row.model_dump().values())], np.float32)
    return Prediction(prediction=float(booster.inplace_predict(values)[0]))


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
