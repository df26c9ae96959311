"""BentoML, one worker. Arguments: MODEL PORT; `bentoml serve` reads this as a module."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ["MODEL"] = sys.argv[1]
    options = ["--host", "127.0.0.1", "--port", sys.argv[2], "--working-dir", str(Path(__file__).parent)]
    program = Path(sys.executable).parent / "bentoml"
    os.execv(program, ["bentoml", "serve", *options, "bentoml_app:Bench"])

import bentoml
import numpy as np
import xgboost


@bentoml.service(workers=1, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Bench:
    def __init__(self) -> None:
        self.booster = xgboost.Booster({"nthread": 1}, model_file=os.environ["MODEL"])

    @bentoml.api
    def predict(self, row: list[float]) -> float:
        return float(self.booster.inplace_predict(np.array([row], np.float32))[0])
