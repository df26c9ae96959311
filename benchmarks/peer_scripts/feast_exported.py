"""Uses a repository that `export-feast` wrote; runs in Feast's environment and imports nothing of ours.

Applies the repository and reads all features of all its views for the rows of a spine: Parquet with the keys
and `event_timestamp`. Written as Parquet, in the spine's order: `row`, the position in it, and the features.
Printed last: {"views": how many, "rows"}.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

import pyarrow.parquet as pq
from feast import FeatureStore
from feast.repo_config import load_repo_config
from feast.repo_operations import apply_total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path)
    parser.add_argument("spine", type=Path)
    parser.add_argument("result", type=Path)
    options = parser.parse_args()
    repository, result = options.repository.resolve(), options.result.resolve()
    spine = pq.read_table(options.spine).to_pandas()
    # Feast's own command does this; as a call it saves a second start of Python.
    sys.path.insert(0, str(repository))
    apply_total(load_repo_config(repository, repository / "feature_store.yaml"), repository, False)
    store = FeatureStore(str(repository))
    views = store.list_feature_views()
    references = [f"{view.name}:{feature.name}" for view in views for feature in view.features]
    table = store.get_historical_features(spine.assign(row=range(len(spine))), references).to_arrow()
    names = [reference.partition(":")[2] for reference in references]
    pq.write_table(table.select(["row", *names]).sort_by("row"), result)
    print(json.dumps({"views": len(views), "rows": table.num_rows}))


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    main()
