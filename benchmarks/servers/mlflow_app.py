"""MLflow's `models serve`, one worker. Arguments: MODEL PORT, in a folder."""

import os
import sys
from pathlib import Path

import mlflow.xgboost
import xgboost

model, port = sys.argv[1:]
booster = xgboost.Booster({"nthread": 1}, model_file=model)
mlflow.xgboost.save_model(booster, "model", model_format="ubj", pip_requirements=["xgboost"])
options = [
    "--model-uri",
    "model",
    "--host",
    "127.0.0.1",
    "--port",
    port,
    "--env-manager",
    "local",
    "--workers",
    "1",
]
os.execv(Path(sys.executable).parent / "mlflow", ["mlflow", "models", "serve", *options])
