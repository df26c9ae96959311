"""Labels that come as a file: the command `labels load`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from mlops_ray import audit
from mlops_ray.config import Project
from mlops_ray.data import labels
from mlops_ray.errors import DataError, ReleaseError
from mlops_ray.policy import machine_only, quoting_nothing, require_here, require_stores
from mlops_ray.registry import package as packages
from mlops_ray.registry.package import Package
from mlops_ray.schema import Column
from mlops_ray.serving import record
from mlops_ray.storage import Storage


def load(project: Project, storage: Storage, file: Path) -> dict[str, Any]:
    """Takes in the labels of a Parquet or CSV file: `{"labels": …, "by": […]}`.

    Those of keys whose rows were erased are left out, and there is how many as `erased`, where there are any.

    Raises `DataError` for a file that is none, or that holds what is no label, `ReleaseError` where no model
    is live whose requests they could be of, and `PolicyError` where rows may not be on this machine.
    """
    require_here(project.policies)
    require_stores(project)
    champion = record.read(storage, project.project).get("champion")
    if champion is None:
        raise ReleaseError(f"no version of {project.project!r} is live yet; labels are of its predictions")
    package = packages.read(storage.root / champion["package"], digest=champion["digest"])
    hidden = machine_only(project)
    shown = [column for column in package.feature_set.request.columns if column.name not in hidden]
    with quoting_nothing(project.policies):
        parsed = _parsed(file, shown, package)
    kept = labels.without_erased(storage, parsed, package.whose)
    found = {"labels": kept.height, "by": [name for name in kept.columns if name != labels.LABEL]}
    found |= {"erased": parsed.height - kept.height} if kept.height < parsed.height else {}
    audit.append(storage, "labels were loaded", audit.who(), {"model": project.project, **found})
    labels.write(storage, project.project, kept)
    return found


def _parsed(file: Path, columns: Sequence[Column], package: Package) -> pl.DataFrame:
    """The labels of a file, named by columns of the request; raises `DataError` with the file."""
    try:
        rows = pl.read_parquet(file) if file.suffix == ".parquet" else pl.read_csv(file, infer_schema=False)
        return labels.parse(rows, columns, package.task, package.outcome.labels)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError("cannot be read", file=str(file), said=f": {error}") from error
    except DataError as error:
        message, said, then = (error.parts[part] for part in ("message", "said", "then"))
        raise DataError(message, said=said, then=then, file=str(file)) from None
