"""NannyML's drift by column of two Parquet files, Jensen-Shannon, one chunk: seconds."""

import json
import sys
import time

import nannyml
import pandas as pd

reference, current = (pd.read_parquet(path) for path in sys.argv[1:3])
begin = time.perf_counter()
calculator = nannyml.UnivariateDriftCalculator(
    column_names=list(reference),
    continuous_methods=["jensen_shannon"],
    categorical_methods=["jensen_shannon"],
    chunk_number=1,
)
calculator.fit(reference)
result = calculator.calculate(current).to_df()
print(json.dumps({"seconds": time.perf_counter() - begin, "columns": result.shape[1]}))
