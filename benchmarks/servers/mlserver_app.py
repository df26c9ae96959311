"""MLServer with its XGBoost runtime, in one process, batching on. Arguments: MODEL PORT, in a folder."""

import json
import os
import sys
from pathlib import Path

model, port = sys.argv[1:]
settings = {
    "host": "127.0.0.1",
    "http_port": int(port),
    "grpc_port": int(port) + 1,
    "metrics_port": int(port) + 2,
    # In process: handing requests to another one costs more than the model.
    "parallel_workers": 0,
    "debug": False,
}
served = {
    "name": "bench",
    "implementation": "mlserver_xgboost.XGBoostModel",
    "parameters": {"uri": model},
    "max_batch_size": 64,
    "max_batch_time": 0.002,
}
Path("settings.json").write_text(json.dumps(settings))
Path("model-settings.json").write_text(json.dumps(served))
Path("logging.ini").write_text(
    "[loggers]\nkeys=root\n[handlers]\nkeys=console\n[formatters]\nkeys=\n"
    "[logger_root]\nlevel=WARNING\nhandlers=console\n[handler_console]\nclass=StreamHandler\nargs=()\n"
)
os.environ["MLSERVER_LOGGING_SETTINGS"] = "logging.ini"
os.execv(Path(sys.executable).parent / "mlserver", ["mlserver", "start", "."])
