"""A package that answers a batch: schema check → online features → encoder → model → post-processing.

What a replica imports for this is small: neither MLflow nor Ray nor pandas nor scikit-learn.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from mlops_ray.data.rows import Table
from mlops_ray.errors import PackageError, RequestError
from mlops_ray.expressions import function_digest
from mlops_ray.features.lookup import point_in_time
from mlops_ray.registry import package as packages
from mlops_ray.registry.encoder import Encoder
from mlops_ray.registry.explain import Contributions, Explainable, Scale, by_feature
from mlops_ray.registry.models import ForestModel, Model, Values
from mlops_ray.registry.outcome import Outcome
from mlops_ray.registry.package import EXAMPLE_TOLERANCE, Package
from mlops_ray.registry.signing import Trusted
from mlops_ray.schema import DTYPES, FAILURES, NO_FAILURES, Schema

if TYPE_CHECKING:
    from mlops_ray.features.online import OnlineStore

Rows = npt.NDArray[np.int64]


class Amounts(NamedTuple):
    """Columns of amounts: float64 (rows, names), NaN where a value is missing."""

    names: tuple[str, ...]
    values: Values

    @property
    def frame(self) -> pl.DataFrame:
        columns = zip(self.names, self.values.T, strict=True)
        return pl.DataFrame([pl.Series(name, values, nan_to_null=True) for name, values in columns])


@dataclass(frozen=True, slots=True)
class Answer:
    """What a batch of requests got.

    `values`: float64, one a row, NaN where the row failed. `failures`: every failed check
    (`schema.FAILURES`); a row with one that is not merely flagged has no value. `given`: the model's feature
    columns, one row a row of the batch, null where the row failed; where they are amounts of the request,
    they may stand among its others. `watermark_us`: up to when all was known of what the features were read
    from, `None` where they were read from the request alone. `asked`: the rows, where they came as a table.
    """

    values: Values
    failures: pl.DataFrame
    given: pl.DataFrame | Amounts
    watermark_us: int | None = None
    asked: Table | None = None

    @property
    def features(self) -> pl.DataFrame:
        return self.given.frame if isinstance(self.given, Amounts) else self.given


@dataclass(frozen=True)
class Predictor:
    """A package in memory. n rows at once get the answers of n times one row, bit for bit."""

    package: Package
    name: str
    _online: "OnlineStore | None"
    _encoder: Encoder
    _model: Model
    _outcome: Outcome
    _features: Schema

    @classmethod
    def load(
        cls,
        folder: Path,
        online: "OnlineStore | None",
        *,
        digest: str | None = None,
        functions: frozenset[str] = frozenset(),
        trusted: Trusted = None,
        types: frozenset[str] = frozenset(),
    ) -> Self:
        """The predictor of the package in `folder`; without a store, requests hold the features themselves.

        `functions` are those that the operator's project file names: a package may call no other. `trusted`
        are the public keys of which one must have signed it, `types` those that an estimator may hold. Raises
        `PackageError` where the package is damaged or not trusted (see `package.read`), calls another
        function, or does not give the answers to its own examples that were stored with it.
        """
        package = packages.read(folder, digest=digest, trusted=trusted, types=types)
        _refuse_foreign(package, functions)
        encoder, model = package.encoder, package.model
        schema = Schema(package.feature_set.columns)
        predictor = cls(package, package.name, online, encoder, model, package.outcome, schema)
        predictor._check_examples()
        return predictor

    def predict(self, inputs: pl.DataFrame) -> Answer:
        """Answers the rows of a request; columns that the model does not ask for are not looked at.

        A missing column is a failure of every row by the rule "missing_column".
        """
        request, given = self.package.feature_set.request, inputs.columns
        missing = [name for name in request.names if name not in given]
        if missing:
            failures = pl.concat([_missing_column(name, inputs.height) for name in missing])
            return self._answer(inputs.clear(), failures, inputs.height)
        rows = inputs if given == list(request.names) else inputs.select(request.names)
        typed, failures = request.check(rows)
        return self._answer(typed, failures, inputs.height)

    def answer(self, asked: Table) -> Answer:
        """What `predict` answers to rows of the request's schema.

        Where the model is made of amounts alone, as they come, a few sound rows take half the time.
        """
        if self._places is None or not asked.is_sound:
            asked = asked.packed()
            return replace(self.predict(asked.frame), asked=asked)
        matrix = self._encoder.transform_amounts(asked.floats[:, self._places])
        answers = self._outcome.answers(self._model.predict(matrix))
        return Answer(answers, NO_FAILURES, Amounts(self._request_floats, asked.floats), asked=asked.packed())

    @cached_property
    def _request_floats(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.package.feature_set.request.columns if c.type == "float")

    @cached_property
    def _places(self) -> Rows | None:
        """Where the encoder's columns stand among the request's of type float, if they all do."""
        asked, floats = self._encoder.amounts, self._request_floats
        if asked is None or not self.package.feature_set.is_of_own_columns or not set(asked) <= set(floats):
            return None
        return np.array([floats.index(name) for name in asked])

    def predict_features(self, features: pl.DataFrame) -> Values:
        """The answers to rows of feature columns: float64 (rows).

        A value of a wrong type counts as missing.
        """
        rows = features.select(self._features.names)
        typed = rows.dtypes == [DTYPES[column.type] for column in self._features.columns]
        return self._predict(rows if typed else self._features.check(rows)[0])

    @property
    def explains(self) -> bool:
        """Whether the model's family can tell what each feature contributes."""
        return isinstance(self._model, Explainable)

    def explain(self, features: pl.DataFrame, hidden: frozenset[str] = frozenset()) -> Contributions:
        """What each feature adds to the answers to rows of `Answer.features` that have not failed.

        Nobody may see those of `hidden` features, beside those that were hidden when the model was trained.

        Raises `RequestError` where the model's family cannot tell.
        """
        if not isinstance(self._model, Explainable):
            raise RequestError(f"the family {self.package.family} gives no contributions")
        values, base = self._model.contributions(self._encoder.transform(features))
        names, summed = by_feature(values, self._encoder, self._features.columns, hidden)
        return Contributions(names, summed, base, self._scale)

    @property
    def _scale(self) -> Scale:
        if self.package.task == "regression":
            return self._outcome.transform or "answer"
        return "probability" if isinstance(self._model, ForestModel) else "log-odds"

    def _answer(self, typed: pl.DataFrame, failures: pl.DataFrame, height: int) -> Answer:
        """`typed` has all `height` rows, or none where every row has failed."""
        good = _standing(typed.height, failures)
        rows = typed if len(good) == typed.height else typed[good]
        features, found, watermark_us = self._read_features(rows)
        kept = _standing(rows.height, found)
        if found.height:
            # The store numbers the rows that it was given; answers speak of the request's.
            found = found.with_columns(row=pl.Series(good[found["row"].to_numpy()], dtype=pl.UInt32))
            failures = pl.concat([failures, found]).sort("row", maintain_order=True)
            features, good = features[kept], good[kept]
        values = np.full(height, np.nan)
        values[good] = self._predict(features)
        return Answer(values, failures, _spread(features, good, height), watermark_us)

    def _read_features(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, int | None]:
        feature_set = self.package.feature_set
        if rows.is_empty():
            columns = {column.name: DTYPES[column.type] for column in feature_set.columns}
            return pl.DataFrame(schema=columns), NO_FAILURES, None
        if self._online is not None:
            return self._online.read(feature_set, rows)
        if feature_set.tables:
            raise PackageError(f"the features of {self.name!r} need an online store, and none was given")
        return point_in_time(rows, {}, feature_set), NO_FAILURES, None

    def _predict(self, features: pl.DataFrame) -> Values:
        return self._outcome.answers(self._model.predict(self._encoder.transform(features)))

    def _check_examples(self) -> None:
        """Answers the package's own examples; the first call of a model is also its slowest."""
        rows, answers = self.package.examples
        given = self._model.predict(self._encoder.transform(rows))
        if not np.allclose(given, answers, rtol=EXAMPLE_TOLERANCE, atol=EXAMPLE_TOLERANCE):
            raise PackageError(
                f"the package {self.package.folder} does not answer its own examples as when it was written"
            )


def _refuse_foreign(package: Package, functions: frozenset[str]) -> None:
    """What is imported and called is the operator's to say, never the package's."""
    called = [(f.argument, f.code) for f in package.feature_set.computed if f.kind == "function"]
    called += [(f.path, f.code)] if (f := package.outcome.function) else []
    for path, code in called:
        if path not in functions:
            raise PackageError(
                f"the package {package.folder} calls {path!r}, which the project file does not"
            )
        if code != function_digest(path):
            raise PackageError(f"{path!r} is not what the model of {package.folder} was trained with")


def _standing(height: int, failures: pl.DataFrame) -> Rows:
    """The positions of the rows without a failed check, or with flagged ones alone."""
    stands = np.ones(height, np.bool_)
    if failures.height and height:
        stands[failures.filter(pl.col("severity") != "flag")["row"].to_numpy()] = False
    return np.flatnonzero(stands)


def _spread(features: pl.DataFrame, at: Rows, height: int) -> pl.DataFrame:
    """The features at their places in the request; nulls elsewhere."""
    if len(at) == height:
        return features
    places = np.full(height, -1)
    places[at] = np.arange(len(at))
    return features[pl.Series(places).replace(-1, None)] if len(at) else features.clear(height)


def _missing_column(name: str, height: int) -> pl.DataFrame:
    rows = pl.DataFrame({"row": range(height)}, schema={"row": FAILURES["row"]})
    failed = {"column": name, "rule": "missing_column", "value": None, "severity": "reject"}
    return rows.with_columns(pl.lit(value, FAILURES[key]).alias(key) for key, value in failed.items())
