"""What a look says of a model's quality: by estimate of a window's rows, and by labels where they came."""

import logging
from collections.abc import Collection
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from mlops_ray.data.labels import LABEL
from mlops_ray.errors import MlopsError, safe
from mlops_ray.monitoring import logged, performance, segments, weighted
from mlops_ray.monitoring.alarms import Finding
from mlops_ray.monitoring.losses import Split
from mlops_ray.monitoring.performance import Expected
from mlops_ray.monitoring.segments import Segment
from mlops_ray.monitoring.weighted import Weighted
from mlops_ray.registry.booster import Booster
from mlops_ray.registry.models import Values
from mlops_ray.registry.package import Package

logger = logging.getLogger(__name__)


class Labelled(NamedTuple):
    """Rows whose label came: of all of them the prediction, the label and what they are cut by.

    `whole` are many of them as the log has them, at most `performance.MOST_ROWS`.
    """

    rows: pl.DataFrame
    whole: pl.DataFrame


def judge(
    package: Package,
    expected: Expected,
    rows: pl.DataFrame,
    shown: Collection[str],
    true: Labelled | None,
    tested: pl.DataFrame | None,
) -> tuple[dict[str, Any], list[Finding]]:
    """The figures of a look, as the journal has them, and what is worse than in the reference.

    Segments are those of columns of the log that are `shown`; `true` is `None` where no labels can be read,
    `tested` where no rows of the test are kept.
    """
    estimated, number, told = {}, 0, list[Segment]()
    measured, labelled, split = {}, 0, None
    again = None if tested is None else _weighted(package, expected, tested, rows)
    try:
        errors = _errors(package, expected, rows)
        estimated, number = _estimate(expected, rows, errors), rows.height
        told += expected.segments(_columns(expected, rows.select(shown)), logged.answers(rows), errors)
        if true is not None and true.rows.height:
            values = true.rows[LABEL].to_numpy(), logged.answers(true.rows)
            measured, labelled = expected.measure(*values), true.rows.height
            told += expected.labelled_segments(_columns(expected, true.rows), *values)
            split = expected.split(
                *values, _estimate(expected, true.whole, _errors(package, expected, true.whole))
            )
    except (MlopsError, OSError, ValueError, pl.exceptions.PolarsError) as error:
        # What can be known of the rest is not held up.
        logger.error("the quality of %s is not known (%s)", package.name, safe(error))
    said = {
        "estimated": estimated,
        "rows": number,
        "weighted": again and again._asdict(),
        "realised": measured,
        "labelled": labelled,
        "reference": {
            how: {name: figure.value for name, figure in expected.figures(how).items()}
            for how in segments.HOW
        },
        "segments": segments.document(expected.decides, told),
        "split": split and split._asdict(),
    }
    realised = _explained(expected, split, performance.findings(expected, "realised", measured, labelled))
    asked = performance.findings(expected, "estimated", estimated, number) + realised
    return said, asked + segments.findings(expected.decides, told)


def _weighted(
    package: Package, expected: Expected, tested: pl.DataFrame, rows: pl.DataFrame
) -> Weighted | None:
    try:
        return weighted.of_log(package, expected, tested, rows)
    except (MlopsError, OSError, ValueError, pl.exceptions.PolarsError) as error:
        # It stands beside the others, which it does not hold up.
        logger.error("the weighted estimate of %s is not known (%s)", package.name, safe(error))
        return None


def _explained(expected: Expected, split: Split | None, found: list[Finding]) -> list[Finding]:
    """What is worse, with what of it is what."""
    if split is None:
        return found
    why = split.sentence(expected.decides)
    return [replace(each, evidence=f"{each.evidence}; {why}") if each.matters else each for each in found]


def _columns(expected: Expected, rows: pl.DataFrame) -> dict[str, pl.Series]:
    """The columns that rows are cut by, as far as these have them."""
    found = {name: logged.column(rows, name) for name in expected.cuts}
    return {name: column for name, column in found.items() if column is not None}


def _estimate(expected: Expected, rows: pl.DataFrame, errors: dict[str, Values]) -> dict[str, float]:
    """The metrics that these rows of the log will have."""
    return {} if rows.is_empty() else expected.estimate(logged.answers(rows), errors)


def _errors(package: Package, expected: Expected, rows: pl.DataFrame) -> dict[str, Values]:
    """Of a regression's rows the errors that are expected of each, by metric."""
    errors: dict[str, Values] = {}
    if expected.task == "regression" and not rows.is_empty():
        matrix = package.encoder.transform(logged.features(package, rows))
        inputs = performance.error_inputs(matrix, logged.answers(rows))
        for metric in expected.estimated:
            model = package.errors(metric)
            if model is not None:
                errors[metric] = Booster(model).predict(inputs).astype(np.float64)
    return errors
