"""The sections of the project file beside its sources, and the whole, which `load` alone reads."""

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FiniteFloat,
    PlainSerializer,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from mlops_ray.config.mail import mail
from mlops_ray.config.reading import Origin, parse, read, unset
from mlops_ray.config.source import KnownAt, Policy, Source
from mlops_ray.config.values import (
    Aggregation,
    Country,
    Duration,
    FileName,
    Function,
    Model,
    Names,
    Rate,
    Share,
    Sql,
    Step,
    Timezone,
    Url,
    as_list,
    columns_of,
    duration_in_words,
    parse_duration,
    require_known,
    wrong,
)
from mlops_ray.errors import ConfigError
from mlops_ray.schema import ColumnType

# ---------------------------------------------------------------- features


STORED_KINDS = ("latest", "value_at", "lag", "window")
CALENDAR_KINDS = ("hour_of", "weekday_of", "month_of", "holiday_of")


class ValueAt(Model):
    """The newest value in [T - ago - tolerance, T - ago]."""

    of: str
    """The column."""
    ago: Duration
    """Counted from the target time T; at least the horizon."""
    tolerance: Duration = 0
    """How much older than `ago` the value may be; default: not at all."""


class Lag(Model):
    """The value so many rows before, for a source that has order only."""

    of: str
    """The column."""
    rows: int = Field(ge=1)
    """How many rows before."""


class Window(Model):
    """An aggregate over the rows with event time in (P - over, P]."""

    of: str
    """The column."""
    agg: Aggregation
    """Missing values are skipped, but by `count`, which counts rows, and by `first` and `last`."""
    over: Step
    """How far back it reaches from P, the moment of prediction."""
    quantile: float | None = Field(None, ge=0, le=1)
    """Which, for `agg: quantile`: 0.5 is the median."""

    @model_validator(mode="after")
    def _which(self) -> Self:
        if (self.quantile is not None) != (self.agg == "quantile"):
            raise ValueError("agg: quantile, and it alone, says which, e.g. quantile: 0.9")
        return self


class Feature(Model):
    """One feature; exactly one of its kinds."""

    exactly_one = (*STORED_KINDS, "expr", "function", *CALENDAR_KINDS)

    latest: str | None = None
    """The newest value of a column; missing where the newest row's is."""
    value_at: ValueAt | None = None
    """The value some time ago."""
    lag: Lag | None = None
    """The value some rows ago."""
    window: Window | None = None
    """An aggregate over the time before."""
    expr: Sql | None = None
    """SQL over the columns of the request's row."""
    function: Function | None = None
    """A Python function over columns of the request's row."""
    type: ColumnType = "float"
    """What a function returns."""
    hour_of: str | None = None
    """0 to 23, of a time of the request."""
    weekday_of: str | None = None
    """1 (Monday) to 7."""
    month_of: str | None = None
    """1 to 12."""
    holiday_of: str | None = None
    """Whether it is a public holiday in `country`."""
    country: Country | None = None
    """ISO 3166, e.g. DE."""
    timezone: Timezone | None = None
    """Of hours, weekdays, months and holidays; default: that of the target's source, or UTC."""

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.holiday_of is not None and self.country is None:
            raise ValueError("holiday_of needs country, e.g. country: DE")
        return self

    @property
    def is_stored(self) -> bool:
        """Whether it reads a history, and not the request."""
        return any(getattr(self, kind) is not None for kind in STORED_KINDS)


class View(Model):
    """Features of a source's history, features of the request itself, or a row's own columns."""

    exactly_one = ("source", "on_request", "columns")

    source: str | None = None
    """The source whose history is read."""
    features: dict[str, Feature] = {}
    """By their names, features of the source's history."""
    ttl: Duration | None = None
    """How old a `latest` value may be; both ends count."""
    join_keys: dict[str, str] = {}
    """What the keys of the source are called in a request, e.g. `{origin: airport}` for its key `airport`."""
    on_request: dict[str, Feature] | None = None
    """Features that are computed from the request's own row: columns of the target's source."""
    columns: Names | None = None
    """Columns of the request's row that are features as they are."""
    exclude: Names = ()
    """Columns that are none, where `columns` names more than are wanted."""

    @model_validator(mode="after")
    def _kinds(self) -> Self:
        for name, feature in self.features.items():
            if not feature.is_stored:
                raise ValueError(f"feature {name!r} of a source needs one of {', '.join(STORED_KINDS)}")
        for name, feature in (self.on_request or {}).items():
            if feature.is_stored:
                raise ValueError(f"feature {name!r} reads history; put it into a view with a source")
        return self


class LabelKnown(KnownAt):
    """When the label of a row becomes known."""


class Target(Model):
    """What is predicted, how far ahead, and when the truth becomes known."""

    source: str
    """The source whose rows have the label."""
    expr: Sql
    """What is predicted, over the columns of the source's row at T."""
    horizon: Annotated[
        tuple[Duration, ...], BeforeValidator(as_list, json_schema_input_type=Duration | list[Duration])
    ] = (0,)
    """How far ahead: features see nothing younger than P = T - horizon."""
    task: Literal["regression", "classification"]
    """Whether a number is predicted, or a yes or no."""
    positive: str | int | bool | None = None
    """Of a classification by classes: the one that is a yes."""
    where: Sql | None = None
    """Rows that do not fulfil it have no label."""
    label_known: LabelKnown | None = None
    """When the truth of a row becomes known; default: `monitoring.labels.delay` later."""
    known_at: Literal["event"] | None = None
    """`event`: features of a row see what was known at its P; default: all that is known when asked for."""
    transform: Literal["log", "log1p"] | None = None
    """Of a number: what the model predicts in its place; answers are turned back."""


# ---------------------------------------------------------------- training


#: ISO 4217, e.g. EUR.
Currency = Annotated[str, Field(pattern="^[A-Z]{3}$")]


class Money(Model):
    amount: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """How much."""
    currency: Currency
    """ISO 4217, e.g. EUR."""


def _no_region(labels: dict[str, str]) -> dict[str, str]:
    if "region" in labels:
        raise ValueError("in which region something may run is said by a source's policy: allowed_regions")
    return labels


#: A label of Ray's nodes, and a condition as Ray has them: a value, `in(a,b)`, or either after `!`.
NodeLabel = Annotated[str, Field(pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9][\w.-]{0,62}$")]
Condition = Annotated[str, Field(pattern=r"^!?([\w.-]+|in\([\w.-]+(,[\w.-]+)*\))$")]


class Resources(Model):
    """What one trial, or one replica, asks of Ray."""

    cpu: float = Field(1, gt=0)
    """CPUs, which may be a part of one."""
    gpu: float = Field(0, ge=0)
    """GPUs, which may be a part of one."""
    labels: Annotated[dict[NodeLabel, Condition], AfterValidator(_no_region)] = {}
    """Of the nodes on which it may run, e.g. {pool: cpu} or {pool: "!gpu"}."""


class Search(Model):
    """How far and with what the sweep searches."""

    trials: int = Field(20, ge=1)
    """How many sets of parameters are tried."""
    algorithm: Literal["tpe", "random"] = "tpe"
    """How the next set is chosen: by what was good so far (`tpe`), or at random."""
    scheduler: Literal["asha", "none"] = "asha"
    """Whether trials that fall behind after a fold are stopped (`asha`)."""
    time_limit: Duration | None = None
    """After how long the search is cut off."""
    budget: Money | None = None
    """What trials may cost, by `cost.prices`: with `time_limit` what is reached first ends the search."""
    resources: Resources = Resources()
    """What one trial asks of Ray."""
    gpu: Literal["required", "preferred", "none"] = "none"
    """Whether trials need a GPU, take one where there is one, or take none."""
    rows: int = Field(20_000, ge=100)
    """That a trial fits on, drawn at random from a fold's: enough to rank. The winner is fitted on all."""
    workers: int = Field(1, ge=1)
    """Of the winner's fit, where it is XGBoost; more by themselves where a node's memory is too small."""
    seed: int = Field(0, ge=0, lt=2**32)
    """What chance begins with: the same seed and data give the same table."""
    space: dict[str, dict[str, Any]] = {}
    """By family and parameter: a value, a list of them, or {min, max}; default: what each family has."""


class HeldOut(Model):
    """The part of the data that only the winner sees: from a date on, or the last share."""

    exactly_one = ("from_", "share")

    #: YAML reads a bare date as a date.
    from_: Annotated[str, BeforeValidator(str)] | None = Field(None, alias="from")
    """The first instant, or date, of the test part."""
    share: Share | None = None
    """The share of rows that is the test part."""


class Validation(Model):
    """How rows are split; data with a `group` never has the group on both sides."""

    by: Literal["time", "order", "random"] = "time"
    """What tells test from training: the event time, the order of rows, or chance."""
    test: HeldOut = HeldOut(share=0.2)
    """The part that only the winner sees."""
    folds: int = Field(3, ge=1, le=100)
    """How many parts of the rest trials are compared on."""
    group: str | None = None
    """A column whose values are never on both sides, e.g. patient."""
    stratify: bool = False
    """Whether each part has each class by its share."""
    replay: bool = False
    """Whether folds are short and follow each other: what was tested on is learned next, as in a stream."""


class Gate(Model):
    """What the winner must beat, and by how much, to go on."""

    better_than: tuple[Literal["naive", "champion"], ...] = ("naive", "champion")
    """Whom the winner must beat on the test part."""
    by: Share = 0.0
    """By which share of the other's error."""


class ThresholdFor(Model):
    """What a decision threshold is chosen for: a recall, a precision, or the least cost."""

    exactly_one = ("recall", "precision", "cost")

    recall: float | None = Field(None, ge=0, le=1)
    """The share of what is a yes that is found, at least."""
    precision: float | None = Field(None, ge=0, le=1)
    """The share of what is said to be a yes that is one, at least."""
    cost: tuple[tuple[float, float], tuple[float, float]] | None = None
    """What an answer costs, by what is (rows) and what was said (columns), no before yes."""


class Threshold(Model):
    for_: Literal["f1", "accuracy"] | ThresholdFor = Field("f1", alias="for")
    """A figure that is to be the best, or a bound that must hold."""


class ClassWeights(Model):
    """How much a row of each class counts."""

    negative: float = Field(1.0, gt=0)
    """Of a row that is a no."""
    positive: float = Field(1.0, gt=0)
    """Of a row that is a yes."""


class Imbalance(Model):
    """Classes that are out of balance."""

    weights: Literal["balanced"] | ClassWeights | None = None
    """How much rows count: each class alike (`balanced`), or as said."""
    threshold: Threshold | None = None
    """From which probability on the answer is yes; default: 0.5."""
    minimum_rows: int = Field(50, ge=1)
    """How many rows of the rarer class there must be, at least."""


class OwnFamily(Model):
    """A model family of the user's own, by the dotted path of its class."""

    path: str
    """E.g. package.module.Name: one with a family's methods, or a scikit-learn estimator."""


class Training(Model):
    """Which families compete, how they are searched, and what decides."""

    families: tuple[str | OwnFamily, ...] = ("ridge", "xgboost")
    """The families that compete, by name, or by the path of a class of your own."""
    search: Search = Search()
    """How many trials there are, and what they take."""
    metric: str = "mae"
    """What decides, measured on validation rows."""
    metrics: Names = ()
    """What is measured besides."""
    validation: Validation = Validation()
    """How rows are split."""
    gate: Gate = Gate()
    """What the winner must beat to go live."""
    imbalance: Imbalance | None = None
    """What is done where one class is rare."""
    minimum_rows: int = Field(100, ge=1)
    """How many labelled rows there must be, at least."""


# ---------------------------------------------------------------- serving and after


class Slo(Model):
    p99_ms: float = Field(50, gt=0)
    """Within how many milliseconds 99 of 100 requests are answered."""
    error_rate: Share = 0.001
    """Which share of requests may fail."""


class Replicas(Model):
    min: int = Field(1, ge=0)
    """0: none while nobody asks; who asks first then waits until one has started."""
    max: int = Field(8, ge=1)
    """How many there are at most."""
    initial: int | None = Field(None, ge=1)
    """How many start with the service; default: `min`, or as many as were planned (`machine: auto`)."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.min <= self.max:
            raise wrong(f"min: {self.min} is more than max: {self.max}", "max")
        if self.initial is not None and not self.min <= self.initial <= self.max:
            raise wrong(f"initial: {self.initial} is not between {self.min} and {self.max}", "initial")
        return self


class Batching(Model):
    max_rows: int = Field(256, ge=1)
    """How many rows are answered together, at most."""
    max_wait_ms: float = Field(2, ge=0)
    """How many milliseconds a request waits for others, at most."""


class Machine(Resources):
    """What one replica asks of Ray, and of which type of machine."""

    machine: str = Field("auto", pattern=r"^[\w.-]+$", max_length=64)
    """`auto`, or a type of the prices: its nodes alone, and without `cpu` a size that was measured there."""


class Postprocess(Model):
    """What happens to a model's answer: a function of your own, then bounds."""

    clip: tuple[float | None, float | None] | None = None
    """[least, most]: what is beyond is set to it; `null` for no bound."""
    function: str | None = Field(None, pattern=r"^\w+(\.\w+)+$")
    """A dotted path, e.g. package.module.name: from answers, a float Series, to as many numbers.

    Each must come from its own row alone.
    """
    labels: tuple[str, str] | None = None
    """What no and yes are called, e.g. [stays, goes]; of a classification."""

    @model_validator(mode="after")
    def _are_bounds(self) -> Self:
        low, high = self.clip or (None, None)
        if low is not None and high is not None and low >= high:
            raise ValueError(f"clip is [least, most], and {low:g} is not below {high:g}")
        return self

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.labels is not None and (not all(self.labels) or len(set(self.labels)) < 2):
            raise ValueError("labels are two names that differ, for no and for yes, e.g. [stays, goes]")
        return self


class Listen(Model):
    """Where callers come in. What is said of a host beyond this machine holds for HTTP and gRPC alike."""

    host: str = "127.0.0.1"
    """An address of this machine; 0.0.0.0 for all."""
    port: int | None = Field(None, ge=1, le=65535)
    """Of HTTP; default: 8000, on this machine alone another where that is in use."""
    grpc_port: int | None = Field(None, ge=1, le=65535)
    """Default: 8001, likewise."""
    certificate: str | None = None
    """A PEM file, the certificates of those who signed it behind it: TLS ends here."""
    key: str | None = None
    """Its private key, a PEM file without a passphrase that others may not read."""
    tls: Literal["here", "elsewhere"] = "here"
    """`elsewhere`: a proxy in front of it ends TLS, and what arrives here is readable on its way."""
    url: Url | None = None
    """Where people reach it, for links in alerts; default: at host and port."""

    @model_validator(mode="after")
    def _tls(self) -> Self:
        try:
            is_local = self.is_local
        except ValueError:
            raise wrong(
                "write an address of this machine, e.g. 127.0.0.1, or 0.0.0.0 for all", "host"
            ) from None
        if "%" in self.host:
            # Whatever stands behind it would end up in the proxy's configuration.
            raise wrong("write the address without a scope", "host")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key are said together")
        if self.certificate is not None and self.tls == "elsewhere":
            raise ValueError("where TLS ends elsewhere, no certificate is needed here")
        if not is_local and self.certificate is None and self.tls == "here":
            raise ValueError(
                f"plain HTTP on {self.host} shows keys and rows to the network: add certificate and key, "
                "or tls: elsewhere where a proxy in front of it ends TLS"
            )
        if (self.port or 8000) == (self.grpc_port or 8001):
            raise ValueError("HTTP and gRPC need a port each")
        return self

    @property
    def is_local(self) -> bool:
        """Whether callers beyond this machine are kept out."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def front_port(self) -> int | None:
        """The port of a front end of our own: Serve's has no TLS, and answers on this machine alone."""
        return None if self.is_local and self.certificate is None else self.port or 8000


class Serving(Model):
    """How predictions are answered."""

    listen: Listen = Listen()
    """Where callers come in."""
    slo: Slo = Slo()
    """The objective."""
    replicas: Replicas = Replicas()
    """How many answer."""
    batching: Batching = Batching()
    """How requests are answered together."""
    resources: Machine = Machine()
    """What one replica asks of Ray."""
    postprocess: Postprocess = Postprocess()
    """What happens to a model's answer."""
    explain: Literal["on_request", "never"] = "never"
    """Whether callers may ask what each feature contributed."""


#: Written as a file would say it: a release is carried out as it was pushed, by another process.
Wait = Annotated[Duration, PlainSerializer("{}us".format, when_used="json")]


class Shadow(Model):
    requests: int = Field(500, ge=0)
    """How many copied requests must be compared."""
    max_wait: Wait = parse_duration("10m")
    """How long they are waited for, before it is quiet."""


class CanaryStep(Model):
    weight: float = Field(gt=0, lt=100)
    """The share of keys, of 100, that the version answers."""
    requests: int | None = Field(None, ge=1)
    """How many of its requests must be seen; default: 100."""
    max_wait: Wait | None = None
    """How long the step waits for them before it is quiet; default: 30 times `per_step`."""


#: The states of a version in a release (design/semantics.md, section 12).
ReleaseState = Literal[
    "registered", "verified", "shadow", "canary", "champion", "retired",
    "rolled_back", "refused", "inconclusive",
]  # fmt: skip


class Hook(Model):
    """Who is called when a version comes to a state, by default to any; exactly one of the two.

    A webhook gets the event as JSON by POST, a command on its standard input.
    """

    exactly_one = ("webhook", "command")

    webhook: Url | None = None
    """An address."""
    command: str | None = Field(None, min_length=1)
    """A program and its arguments, run where the service is, with MLOPS_MODEL, MLOPS_VERSION, … set."""
    on: tuple[ReleaseState, ...] = ()
    """The states; default: each."""


class Release(Model):
    """How a version goes live."""

    shadow: Shadow | None = None
    """Copies of requests go to the version first, and nobody gets its answers; default: none do."""
    canary: tuple[float | CanaryStep, ...] = ()
    """Of 100 keys those that the version answers, step by step, e.g. [1, 10, 50]; default: no step."""
    per_step: Wait = parse_duration("2m")
    """How long a step lasts, at least."""
    when_quiet: Literal["inconclusive", "promote"] = "inconclusive"
    """What becomes of a version of which too little was seen."""
    effect: float = Field(0.5, gt=0)
    """How far answers may move, in standard deviations of those that the champion was trained on."""
    profit_gate: Literal["refuse", "report", "off"] = "report"
    """Whether a version that earns less than the champion is refused, told of, or not looked at."""
    hooks: tuple[Hook, ...] = ()
    """Who is called at which state."""

    @model_validator(mode="after")
    def _compares(self) -> Self:
        for step in self.canary:
            if not isinstance(step, CanaryStep) and not 0 < step < 100:
                raise ValueError(
                    f"canary: {step:g} of 100 keys leaves nobody to compare with; after the last step the "
                    "version is champion"
                )
        return self


class FalseAlarms(Model):
    max: float = Field(1, gt=0)
    """How many may be expected, of a model that does not drift."""
    per: Duration = parse_duration("90d")
    """In how long."""


class Labels(Model):
    delay: Duration = 0
    """How long after its event time the truth of a row becomes known."""


def _mail(address: str) -> str:
    mail(address)
    return address


class Alert(Model):
    """Where alarms go; exactly one route."""

    exactly_one = ("webhook", "email", "log", "prometheus")

    webhook: Url | None = None
    """Gets each message as JSON by POST."""
    email: Annotated[str, AfterValidator(_mail)] | None = None
    """A server and who is written to, e.g. smtp://user:password@mail.example.org/ops@example.org"""
    log: bool | None = None
    """A line of JSON in the monitor's log."""
    prometheus: bool | None = None
    """Prometheus reads `mlops_alarm` at /metrics; its rules are in configs/prometheus."""


class Retrain(Model):
    when: tuple[Literal["performance", "drift"], ...] = ("performance", "drift")
    """What asks for it: labels that show a loss, or inputs that have moved."""
    at_most: Rate = "1/7d"
    """How many in any time of this length, e.g. 1/7d."""


class Monitoring(Model):
    """What is watched, and how many false alarms are allowed."""

    window: Duration = parse_duration("1d")
    """How long rows are gathered before they are looked at."""
    false_alarms: FalseAlarms = FalseAlarms()
    """How many are allowed."""
    labels: Labels = Labels()
    """When the truth comes."""
    segments: Names = ()
    """Columns whose values are each looked at by themselves."""
    alerts: tuple[Alert, ...] = ()
    """Who is told."""
    retrain: Retrain | None = None
    """When the model is trained again by itself; default: never."""


#: Requests a second.
RequestRate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
DayOfRates = Annotated[tuple[RequestRate, ...], Field(min_length=24, max_length=24)]


class CostMatrix(Model):
    """What an answer costs, by what is (rows) and what was said (columns), no before yes."""

    costs: tuple[tuple[FiniteFloat, FiniteFloat], tuple[FiniteFloat, FiniteFloat]]
    """Above 0 is lost, below 0 is earned, e.g. [[0, 1], [10, 0]]: what was missed costs ten false alarms."""
    currency: Currency
    """ISO 4217, e.g. EUR."""


class Value(Model):
    """What the quality of an answer is worth; exactly one of its kinds."""

    exactly_one = ("per_unit_of_error", "matrix")

    per_unit_of_error: Money | None = None
    """Of a regression: lost with each unit that a prediction is away from the label."""
    matrix: CostMatrix | None = None
    """Of a classification."""


class Recorded(Model):
    """A load that was recorded."""

    recorded: str
    """A CSV file with the columns `seconds`, rising, and `rate`, requests a second from then on."""


class Spending(Model):
    """The most that is spent, on machines for serving and training."""

    per_day: Money
    """In a day (UTC)."""
    then: Literal["hold", "warn"] = "warn"
    """`hold`: no replica is added any more and no training begins by itself, and an alert says so."""


class Cost(Model):
    """Prices, load, and what a prediction is worth."""

    prices: str | None = None
    """A file of prices (`mlops-ray prices import` writes one)."""
    region: str | None = None
    """Of the machines that may be planned with; default: all that the prices name."""
    machine: str | None = Field(None, pattern=r"^[\w.-]+$", max_length=64)
    """The type of this machine in the prices, where its node does not say by the label `machine`."""
    spot: bool = False
    """Whether machines may be planned with that may be taken away at any time."""
    max_age: Step = parse_duration("90d")
    """Of a price; an older one is used with a warning."""
    load: RequestRate | DayOfRates | Recorded | None = None
    """Requests a second: one number, or one for each hour of a day (UTC), or what was recorded."""
    rows: int = Field(1, ge=1)
    """Of each request of the load."""
    value_per_prediction: Money | None = None
    """What an answer is worth."""
    value: Value | None = None
    """Beside it: what errors cost."""
    profit_margin: Share = 0.01
    """Which share of the champion's profit a version may earn less."""
    training_life: Step = parse_duration("30d")
    """Over how long the cost of a training is spread."""
    safety: float = Field(0.7, gt=0, le=1)
    """The share of its highest rate that a replica is planned to have."""
    storage: Money | None = None
    """What a GiB costs for a month, of the storage's folder."""
    budget: Spending | None = None
    """The most that is spent; default: no bound."""

    @model_validator(mode="after")
    def _one_currency(self) -> Self:
        for name, currency in self._currencies.items():
            if currency != self.currency:
                raise wrong(
                    f"{currency} beside {self.currency}: say all in one currency, at your own rate", name
                )
        return self

    @property
    def currency(self) -> str | None:
        """Of all amounts that are said; `None` where none is."""
        return next(iter(self._currencies.values()), None)

    @property
    def _currencies(self) -> dict[str, str]:
        value = (self.value.per_unit_of_error or self.value.matrix) if self.value else None
        named: dict[str, Money | CostMatrix | None] = {
            "value_per_prediction": self.value_per_prediction,
            "value": value,
            "storage": self.storage,
            "budget": self.budget.per_day if self.budget else None,
        }
        return {name: money.currency for name, money in named.items() if money is not None}


#: Ed25519, 32 bytes in base64.
PublicKey = Annotated[str, Field(pattern="^[A-Za-z0-9+/]{43}=$")]


class Signing(Model):
    """Who signs packages, whose are served, and what a scikit-learn model in one may hold."""

    key: str | None = None
    """The file of the private key; default: `signing.key` in the storage, made at first use."""
    trusted: tuple[PublicKey, ...] = ()
    """Public keys of others whose packages are served too."""
    trusted_types: Names = ()
    """Types that a model of a family of one's own may hold, e.g. sklearn.tree._tree.Tree."""


class Audit(Model):
    """The record of who did what."""

    heads: str | None = None
    """A file outside the storage, one for each storage, which hears of every entry: its number and digest."""


# ---------------------------------------------------------------- the whole


class Stores(Model):
    """The region of each store, asked for where a source's rows may not be in all (`allowed_regions`)."""

    storage: str | None = None
    """Of the folder; default: that of this machine, unless other machines share the folder."""
    tracking: str | None = None
    """Of the tracking server, its database, and where it keeps artefacts."""
    online: str | None = None
    """Of the online store's server."""


#: What runs beside the models under a name of its own.
TAKEN = ("gateway", "loop", "monitor", "reconciler")


def _free(name: str) -> str:
    if name in TAKEN:
        raise ValueError(f"{name!r} is a part of the service; call the project otherwise")
    return name


class Project(Model):
    """The whole project file."""

    project: Annotated[str, AfterValidator(_free)] = Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    """What the model is called, everywhere: small letters, digits and dashes."""
    storage: str = ".mlops"
    """The folder of all state; relative to this file."""
    tracking: str | None = None
    """The address of an MLflow server; default: SQLite in the storage."""
    online: str | None = None
    """The online store, e.g. redis://host:6379/0; default: SQLite in the storage."""
    regions: Stores = Stores()
    """Where the stores are."""
    include: Names = ()
    """Files whose `sources` and `features` are taken in, which several projects may share."""
    sources: dict[FileName, Source]
    """By their names, the tables of rows."""
    features: dict[str, View]
    """By their names, views: the features of one source, of the request, or of the row itself."""
    target: Target
    """What is predicted."""
    training: Training = Training()
    """How the model is found."""
    serving: Serving = Serving()
    """How it answers."""
    release: Release = Release()
    """How a version goes live."""
    monitoring: Monitoring = Monitoring()
    """What is watched."""
    cost: Cost = Cost()
    """What it costs, and what it earns."""
    signing: Signing = Signing()
    """Who signs versions."""
    audit: Audit = Audit()
    """Who did what."""

    _origin: Origin = PrivateAttr(Origin(None, {}))

    @property
    def file(self) -> str | None:
        """Where it was read from, if it was."""
        return self._origin.file

    def located(self, error: ConfigError) -> ConfigError:
        """The error with file and line, for the place in this project that it is at."""
        return self._origin.error(error.message, error.at)

    @model_validator(mode="after")
    def _names(self) -> Self:
        require_known("names", {self.target.source}, self.sources, "no source", "target", "source")
        self._require_columns(columns_of(self.target.expr), self.target.source, "target", "expr")
        for name, view in self.features.items():
            if view.source is not None:
                require_known("names", {view.source}, self.sources, "no source", "features", name, "source")
            for feature_name, feature in view.features.items():
                self._check_feature(("features", name, "features", feature_name), view, feature)
        if self.serving.postprocess.labels is not None and self.target.task != "classification":
            said = "are names for no and yes, and target.task is regression; leave them out"
            raise wrong(said, "serving", "postprocess", "labels")
        self._check_value()
        self._check_budget()
        self._check_heads()
        return self

    def _check_heads(self) -> None:
        """Who can replace the storage is not to replace them too."""
        heads = self.audit.heads
        if heads is None:
            return
        if "://" in heads or Path(heads).resolve().is_relative_to(Path(self.storage).resolve()):
            said = "is no file outside the storage; name one, e.g. /mnt/records/heads.jsonl"
            raise wrong(said, "audit", "heads")

    def _check_budget(self) -> None:
        """What a search may cost is told by prices, in their currency."""
        budget, cost = self.training.search.budget, self.cost
        if budget is None:
            return
        if cost.prices is None:
            said = "is told by what machines cost: name their prices, e.g. cost: {prices: prices.yaml}"
        elif cost.currency not in (None, budget.currency):
            said = f"{budget.currency} beside {cost.currency}: say all in one currency, at your own rate"
        else:
            return
        raise wrong(said, "training", "search", "budget")

    def _check_value(self) -> None:
        """A matrix is of yes and no, an error of numbers."""
        value = self.cost.value
        if value is None:
            return
        kind, task = ("matrix", "classification") if value.matrix else ("per_unit_of_error", "regression")
        if self.target.task != task:
            said = f"is for a {task}, and target.task is {self.target.task}"
            raise wrong(said, "cost", "value", kind)

    def _require_columns(self, names: frozenset[str], source: str, *place: str) -> None:
        require_known("reads", names, self.sources[source].columns, f"no column of {source!r}", *place)

    def _check_feature(self, place: tuple[str, ...], view: View, feature: Feature) -> None:
        stored = feature.value_at or feature.window or feature.lag
        of = feature.latest if stored is None else stored.of
        assert view.source is not None
        assert of is not None
        self._require_columns(frozenset({of}), view.source, *place)
        if feature.value_at is not None and feature.value_at.ago < max(self.target.horizon):
            raise wrong("looks past the moment of prediction: ago is shorter than the horizon", *place)

    @property
    def functions(self) -> frozenset[str]:
        """The Python functions that answering a request calls, by their dotted paths."""
        found = [f.function for view in self.features.values() for f in (view.on_request or {}).values()]
        paths = [self.serving.postprocess.function, *(one.path for one in found if one is not None)]
        return frozenset(path for path in paths if path is not None)

    @property
    def policies(self) -> list[Policy]:
        """Those of its sources: what is made of rows of all keeps all of them."""
        return [source.policy for source in self.sources.values()]

    @property
    def deriving(self) -> frozenset[str]:
        """The Python functions that sources call, by their dotted paths."""
        return frozenset[str]().union(*(source.deriving for source in self.sources.values()))

    @property
    def label_delay(self) -> int:
        """Microseconds from a row's event time to the moment its label is known."""
        known = self.target.label_known
        return (known.after_event or 0) if known is not None else self.monitoring.labels.delay


class _JsonSchema(GenerateJsonSchema):
    """Says defaults as a file says them."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        made = super().default_schema(schema)
        default, types = made.get("default"), [made, *made.get("anyOf", ())]
        if isinstance(default, dict):
            # Its own parts say theirs.
            del made["default"]
        if isinstance(default, list) and len(default) == 1:
            made["default"] = default = default[0]
        if type(default) is int and any(one.get("type") == "string" for one in types):
            made["default"] = duration_in_words(default)
        return made


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a project file."""
    return Project.model_json_schema(by_alias=True, schema_generator=_JsonSchema)


def load(path: str | Path, environ: Mapping[str, str] = os.environ) -> Project:
    """The project that a file describes, its paths absolute.

    Raises `ConfigError` in one sentence that says what is wrong and in which line.
    """
    tree, origin = read(Path(path), environ)
    try:
        project = Project.model_validate(tree)
    except ValidationError as error:
        raise origin.first_error(error) from None
    project._origin = origin
    return project


def warnings(path: str | Path, environ: Mapping[str, str] = os.environ) -> list[str]:
    """What a person should know about a file that loads: alerts that are off, in sentences."""
    tree, _ = parse(Path(path))
    alerts = (tree.get("monitoring") or {}).get("alerts") or []
    missing = [name for alert in alerts for name in unset(alert, environ)]
    return [f"the alert that needs ${{{name}}} is off, since {name} is not set" for name in missing]
