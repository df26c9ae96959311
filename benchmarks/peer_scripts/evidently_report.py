"""Evidently's report of drift of two Parquet files: seconds."""

import json
import sys
import time

import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset

reference, current = (pd.read_parquet(path) for path in sys.argv[1:3])
numbers = [name for name in reference if name.startswith("n")]
rest = [name for name in reference if not name.startswith("n")]
begin = time.perf_counter()
definition = DataDefinition(numerical_columns=numbers, categorical_columns=rest)
sets = [Dataset.from_pandas(frame, data_definition=definition) for frame in (current, reference)]
result = Report([DataDriftPreset()]).run(*sets).dict()
seconds = time.perf_counter() - begin
print(json.dumps({"seconds": seconds, "metrics": len(result["metrics"])}))
