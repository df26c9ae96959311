"""Quality without labels, beside what the labels said: NannyML's car loans, and four years of a census.

The car loans are judged as the figures of NannyML were published: chunks of 5,000, an alarm where the
estimate leaves three standard deviations of the reference's chunks. The census is replayed by months through
the rules of the service: a look a month, a false alarm in 90 days allowed, labels a month late.
"""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from benchmarks import peers
from benchmarks.report import Claim, finish
from mlops_ray.data import counts
from mlops_ray.monitoring import alarms, attribution, known, performance, weighted
from mlops_ray.monitoring.alarms import Alarms, Budget
from mlops_ray.monitoring.drift import compare
from mlops_ray.monitoring.performance import Expected
from mlops_ray.registry import metrics
from mlops_ray.registry.encoder import Encoder
from mlops_ray.schema import Column, ColumnType

CHUNK = 5_000
#: What NannyML publishes: the mean absolute difference of its estimates, and the chunks of which it warns.
THEIRS, WARNED = 0.0021, list(range(5, 10))
LIMIT = 0.0023
MONTHS, MONTH_S = 12, 365.25 / 12 * 86_400
#: Of the car loans: what the model goes by.
CAR_LOANS: dict[str, ColumnType] = {
    "car_value": "float",
    "salary_range": "category",
    "debt_to_income_ratio": "float",
    "loan_length": "float",
    "repaid_loan_on_prev_car": "bool",
    "size_of_downpayment": "category",
    "driver_tenure": "float",
}
#: Of the census: names that are numbers.
AMOUNTS = ("AGEP",)
APART = ("predicted_probability", "prediction", "employed", "id", "year")


@dataclass(frozen=True)
class Moved:
    """The labelled reference as `monitoring.weighted` has it: at most `known.MOST_TESTED` of its rows."""

    encoder: Encoder
    matrix: npt.NDArray[np.float32]
    said: npt.NDArray[np.float64]
    labels: npt.NDArray[np.float64]

    @classmethod
    def of(cls, rows: pl.DataFrame, columns: list[Column], said: Any, labels: Any) -> Self:
        names = [column.name for column in columns]
        encoder = Encoder.fit(rows.select(names), tuple(columns), style="one_hot")
        some = np.random.default_rng(7).permutation(rows.height)[: known.MOST_TESTED]
        return cls(encoder, encoder.transform(rows[some].select(names)), said[some], labels[some])

    def estimate(self, expected: Expected, window: pl.DataFrame, answers: Any) -> float | None:
        """The ROC AUC of a window; `None` where hardly a row of the reference is like its rows."""
        theirs = self.encoder.transform(window.select(part.name for part in self.encoder.parts))
        weights = weighted.weigh(self.matrix, theirs)
        found = weighted.estimate(expected, self.said, self.labels, weights, answers)
        return None if found is None else round(found.metrics["roc_auc"], 4)


def _data() -> Path:
    python = peers.environment("nannyml")
    return next(python.parent.parent.glob("lib/*/site-packages/nannyml/datasets/data"))


def car_loans(folder: Path) -> tuple[list[dict[str, Any]], list[Claim]]:
    """Estimated and realised ROC AUC of each chunk."""
    reference = pl.read_csv(folder / "synthetic_car_loan_reference.csv")
    later = pl.read_csv(folder / "synthetic_car_loan_analysis.csv").join(
        pl.read_csv(folder / "synthetic_car_loan_analysis_target.csv"), on="id", maintain_order="left"
    )
    labels, answers = (reference[name].cast(pl.Float64).to_numpy() for name in ("repaid", "y_pred_proba"))
    expected, _ = performance.expect(
        "classification", "roc_auc", labels, answers, np.arange(len(labels)), threshold=0.5
    )
    moved = Moved.of(reference, [Column(name, kind) for name, kind in CAR_LOANS.items()], answers, labels)
    chunks = [
        metrics.METRICS["roc_auc"](labels[at : at + CHUNK], answers[at : at + CHUNK])
        for at in range(0, len(labels), CHUNK)
    ]
    middle, spread = float(np.mean(chunks)), float(np.std(chunks))
    rows = []
    for number, at in enumerate(range(0, later.height, CHUNK)):
        chunk = later[at : at + CHUNK]
        said, true = (chunk[name].cast(pl.Float64).to_numpy() for name in ("y_pred_proba", "repaid"))
        estimated = expected.estimate(said, {})
        measured = expected.measure(true, said)
        (found,) = performance.findings(expected, "estimated", estimated, len(said))
        rows.append(
            {
                "data": "car loans",
                "window": number,
                "estimated": round(estimated["roc_auc"], 4),
                "weighted": moved.estimate(expected, chunk, said),
                "realised": round(measured["roc_auc"], 4),
                "beyond_3_sd": bool(abs(estimated["roc_auc"] - middle) > 3 * spread),
                "by_budget": bool(found.matters and found.p <= alarms.MOST_SHARE),
            }
        )
    error = float(np.mean([abs(row["estimated"] - row["realised"]) for row in rows]))
    wrong = sum((row["window"] in WARNED) != row[how] for row in rows for how in ("beyond_3_sd", "by_budget"))
    return rows, [
        Claim("car loans: mean absolute error of the estimated ROC AUC", error, LIMIT),
        Claim("car loans: chunks with an alarm too many or too few", wrong, 0),
    ]


def census(folder: Path) -> tuple[list[dict[str, Any]], list[Claim]]:
    """Input drift is reported; accuracy did not change, and no alarm says that it did."""
    reference = pl.read_parquet(folder / "employment_MA_reference.pq")
    later = pl.read_parquet(folder / "employment_MA_analysis.pq")
    target = pl.read_parquet(folder / "employment_MA_analysis_target.pq")
    later = later.hstack(target.select(set(target.columns) - set(later.columns)))
    names = [name for name in reference.columns if name not in APART]
    columns = [Column(name, "float" if name in AMOUNTS else "category") for name in names]
    ours = counts.reference(reference, columns, 7)
    probability, label = "predicted_probability", "employed"
    labels, answers = (reference[name].cast(pl.Float64).to_numpy() for name in (label, probability))
    expected, _ = performance.expect(
        "classification", "roc_auc", labels, answers, np.arange(len(labels)), threshold=0.5
    )
    moved = Moved.of(reference, columns, answers, labels)
    budget, rows = Budget(), []
    found = {"input": 0, "performance": 0}
    due: list[tuple[np.ndarray, np.ndarray]] = []
    state = Alarms(0.0)
    for number, window in enumerate(_months(later), 1):
        until = number * MONTH_S
        share = budget.share(until - state.looked_at)
        counted = counts.Counts.empty(ours.specs)
        counted.update(window)
        asked = [
            attribution.finding(drift, *ours.by_name[drift.column], counted.by_name[drift.column][1])
            for drift in compare(ours, counted, alpha=share)
            if drift.untested is None
        ]
        said, true = (window[name].cast(pl.Float64).to_numpy() for name in (probability, label))
        estimated = expected.estimate(said, {})
        asked += performance.findings(expected, "estimated", estimated, len(said))
        measured = _measured(expected, due)
        if measured is not None:
            asked += performance.findings(expected, "realised", measured[0], measured[1])
        due = [(true, said)]
        look = alarms.look(until, share, asked)
        state.take(look, "1")
        kinds = {finding.about: finding.kind for finding in look.findings}
        for about in look.found:
            found["performance" if kinds[about] == "performance" else "input"] += 1
        rows.append(
            {
                "data": "census",
                "window": f"{window['year'][0]}, {(number - 1) % MONTHS + 1}",
                "estimated": round(estimated["roc_auc"], 4),
                "weighted": moved.estimate(expected, window, said),
                "realised": round(expected.measure(true, said)["roc_auc"], 4),
                "found": ", ".join(look.found),
            }
        )
    error = float(np.mean([abs(row["estimated"] - row["realised"]) for row in rows]))
    return rows, [
        Claim("census: columns reported as drifting, over all months", found["input"], 1, at_least=True),
        Claim("census: alarms on performance", found["performance"], 0),
        Claim("census: mean absolute error of the estimated ROC AUC", error, 0.01),
    ]


def _months(later: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Twelve equal parts of each year, drawn by chance: rows have no date, and those of homes come last."""
    random = np.random.default_rng(7)
    for (_,), all_year in later.group_by("year", maintain_order=True):
        year = all_year[random.permutation(all_year.height)]
        ends = np.linspace(0, year.height, MONTHS + 1).astype(int)
        yield from (year[start:end] for start, end in itertools.pairwise(ends))


def _measured(
    expected: Expected, due: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[dict[str, float], int] | None:
    if not due:
        return None
    true, said = due[0]
    return expected.measure(true, said), len(said)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    folder = _data()
    rows, claims = car_loans(folder)
    more, others = census(folder)
    finish("estimates", rows + more, claims + others)


if __name__ == "__main__":
    main()
