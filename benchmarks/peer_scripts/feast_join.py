"""Feast's point-in-time join with its DuckDB store; runs in Feast's environment and imports nothing of ours.

The folder holds `history.parquet` (keys, event_time, known_at, values) and `spine.parquet` (keys, event_time,
anything else). Written there, in the spine's order: `result.parquet` with `row`, the position in it, and the
values. Printed last: {"seconds": of the retrieval into a table in memory, "rows", "peak_bytes", "feast",
"duckdb"}.
"""

import argparse
import json
import os
import tempfile
import time
import warnings
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import ibis
import pandas as pd
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, FileSource, RepoConfig, ValueType

#: What Feast takes for the moment of a spine's row.
MOMENT = "event_timestamp"
VIEW = "history"
VALUE_TYPES = {"string": ValueType.STRING, "large_string": ValueType.STRING, "int64": ValueType.INT64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keys", nargs="*", default=["key"])
    parser.add_argument("--ttl-us", type=int, help="without it values never expire")
    parser.add_argument("--strict", action="store_true", help="only what was known at each row's moment")
    parser.add_argument(
        "--memory-gib", type=float, help="DuckDB's limit; without it its own, 80 % of the machine"
    )
    options = parser.parse_args()
    folder = options.folder.resolve()
    spine = _spine(folder / "spine.parquet", options.keys)
    if options.memory_gib:
        ibis.set_backend(ibis.duckdb.connect(memory_limit=f"{options.memory_gib}GiB"))
    with tempfile.TemporaryDirectory(dir=folder) as repository:
        # DuckDB spills into the working directory.
        os.chdir(repository)
        store = _store(Path(repository))
        entities, view = _definitions(folder / "history.parquet", options.keys, options.ttl_us)
        store.apply([*entities, view])
        references = [f"{VIEW}:{feature.name}" for feature in view.features]
        begin = time.perf_counter()
        job = store.get_historical_features(spine, references, filter_by_created_timestamp=options.strict)
        table = job.to_arrow()
        seconds = time.perf_counter() - begin
    result = table.select(["row", *(feature.name for feature in view.features)]).sort_by("row")
    pq.write_table(result, folder / "result.parquet")
    answer = {
        "seconds": seconds,
        "rows": result.num_rows,
        "peak_bytes": _peak_bytes(),
        "feast": version("feast"),
        "duckdb": version("duckdb"),
    }
    print(json.dumps(answer))


def _peak_bytes() -> int:
    """As the kernel says of this process; `ru_maxrss` would begin at the peak of whoever started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _spine(file: Path, keys: list[str]) -> pd.DataFrame:
    spine = pq.read_table(file, columns=[*keys, "event_time"]).to_pandas()
    return spine.rename(columns={"event_time": MOMENT}).assign(row=range(len(spine)))


def _definitions(file: Path, keys: list[str], ttl_us: int | None) -> tuple[list[Entity], FeatureView]:
    types = {field.name: str(field.type) for field in pq.read_schema(file)}
    entities = [Entity(name=key, join_keys=[key], value_type=VALUE_TYPES[types[key]]) for key in keys]
    source = FileSource(path=str(file), timestamp_field="event_time", created_timestamp_column="known_at")
    ttl = None if ttl_us is None else timedelta(microseconds=ttl_us)
    # Feast reads the columns and their types from the file where no schema is given.
    return entities, FeatureView(name=VIEW, entities=entities, ttl=ttl, source=source)


def _store(repository: Path) -> FeatureStore:
    config = RepoConfig(
        project="peer",
        provider="local",
        registry=str(repository / "registry.db"),
        offline_store={"type": "duckdb"},
        online_store={"type": "sqlite", "path": str(repository / "online.db")},
        entity_key_serialization_version=3,
        repo_path=repository,
    )
    return FeatureStore(config=config)


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    main()
