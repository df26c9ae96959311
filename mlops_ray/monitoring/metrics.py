"""The monitor's counts as Prometheus metrics, by the names that interfaces.md fixes."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from mlops_ray.data.counts import BATCH_ROWS, REQUEST_US
from mlops_ray.monitoring.alarms import Kind
from mlops_ray.monitoring.alerts import FAILED

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MICROSECONDS = 1e6


def metrics_text(
    snapshot: dict[str, Any],
    releases: Iterable[Mapping[str, Any]],
    costs: Iterable[Mapping[str, Any]] = (),
) -> bytes:
    """The text that Prometheus reads.

    `releases` are the documents of the models (serving.record), `costs` what they cost (cluster.meter).
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(snapshot, list(releases), list(costs)))
    return generate_latest(registry)


class _Snapshot(Collector):
    def __init__(
        self, snapshot: dict[str, Any], releases: list[Mapping[str, Any]], costs: list[Mapping[str, Any]]
    ) -> None:
        self._models, self._releases, self._costs = snapshot, releases, costs
        roles = {
            (release["model"], entry["version"]): role
            for release in releases
            for role in ("challenger", "champion")
            if (entry := release.get(role))
        }
        self._versions = [
            (model, version, roles.get((model, version), "retired"), document)
            for model, state in snapshot.items()
            for version, document in state["versions"].items()
        ]

    def collect(self) -> Iterable[Metric]:
        """Every metric once, with a sample for each version."""
        yield self._requests()
        yield self._histogram(
            "mlops_request_seconds", "Time to answer", "request_us", REQUEST_US, MICROSECONDS
        )
        yield self._histogram("mlops_batch_rows", "Rows answered together", "batch_rows", BATCH_ROWS, 1.0)
        yield self._rejected()
        yield self._invalid()
        yield self._drift()
        yield self._lost()
        yield self._alarms()
        yield self._alerts()
        yield self._release()
        yield from self._cost()
        for how in ("estimated", "realised"):
            yield self._quality(how)

    def _requests(self) -> Metric:
        family = CounterMetricFamily(
            "mlops_requests", "Requests answered", labels=["model", "version", "role", "code"]
        )
        for model, version, role, document in self._versions:
            for code, count in document["traffic"]["requests"].items():
                family.add_metric([model, version, role, code], count)
        return family

    def _histogram(self, name: str, text: str, key: str, ends: tuple[int, ...], unit: float) -> Metric:
        family = HistogramMetricFamily(name, text, labels=["model", "version"])
        for model, version, _, document in self._versions:
            cells = document["traffic"][key]
            buckets = list(_cumulated(ends, cells["cells"], unit))
            family.add_metric([model, version], buckets, sum_value=cells["total"] / unit)
        return family

    def _rejected(self) -> Metric:
        family = CounterMetricFamily(
            "mlops_rejected", "Requests refused", labels=["model", "version", "reason"]
        )
        for model, version, _, document in self._versions:
            for reason, count in document["traffic"]["rejected"].items():
                family.add_metric([model, version, reason], count)
        return family

    def _invalid(self) -> Metric:
        labels = ["model", "version", "column", "rule"]
        family = CounterMetricFamily("mlops_invalid_values", "Values that failed a check", labels=labels)
        for model, version, _, document in self._versions:
            for column, rule, count in document["traffic"]["invalid"]:
                family.add_metric([model, version, column, rule], count)
        return family

    def _lost(self) -> Metric:
        family = CounterMetricFamily(
            "mlops_log_rows_lost", "Answered rows that the prediction log lacks", labels=["model"]
        )
        for model, document in self._models.items():
            family.add_metric([model], document["lost"])
        return family

    def _alarms(self) -> Metric:
        """What the open episode of a model found, by kind; 0 where none is open."""
        family = GaugeMetricFamily("mlops_alarm", "Findings of the open alarm", labels=["model", "kind"])
        for model, document in self._models.items():
            going = [episode for episode in document["alarms"][:1] if episode["resolved"] is None]
            found = Counter(what["kind"] for episode in going for what in episode["found"])
            for kind in get_args(Kind):
                family.add_metric([model, kind], found[kind])
        return family

    def _alerts(self) -> Metric:
        """Messages that were taken, and tries that failed."""
        labels = ["model", "route", "outcome"]
        family = CounterMetricFamily("mlops_alerts", "Alerts sent, and tries that failed", labels=labels)
        for model, document in self._models.items():
            for route, outcome, count in document.get("alerts", []):
                family.add_metric([model, route, outcome], count)
        return family

    def _cost(self) -> Iterator[Metric]:
        """What machines cost, that of idle ones in it, and the rows that somebody was told for it."""
        spent = CounterMetricFamily("mlops_cost", "Money spent on replicas", labels=["model", "currency"])
        told = CounterMetricFamily("mlops_cost_predictions", "Rows that it was spent on", labels=["model"])
        for cost in self._costs:
            # The other metrics are no worse for a document that lacks something.
            with contextlib.suppress(KeyError, TypeError, ValueError):
                model, counted = str(cost["model"]), cost["counted"]
                amount, answered = float(counted["amount"]), float(counted["answered"])
                spent.add_metric([model, str(counted["currency"])], amount)
                told.add_metric([model], answered)
        yield from (spent, told)

    def _release(self) -> Metric:
        """The versions that answer or are compared; and the last one that failed, until something follows."""
        text = "Share of the keys that a version answers, by its state"
        family = GaugeMetricFamily("mlops_release", text, labels=["model", "version", "state"])
        for release in self._releases:
            weight = release.get("weight", 0.0) / 100
            for entry, share in ((release.get("champion"), 1 - weight), (release.get("challenger"), weight)):
                if entry:
                    family.add_metric([release["model"], entry["version"], entry["state"]], share)
            for last in release.get("history", [])[-1:]:
                if last["state"] in FAILED:
                    family.add_metric([release["model"], last["version"], last["state"]], 0.0)
        return family

    def _quality(self, how: str) -> Metric:
        """The metrics of the live version in the last window that closed."""
        text = f"{how.capitalize()} quality of the live version"
        family = GaugeMetricFamily(f"mlops_{how}_metric", text, labels=["model", "metric"])
        for model, document in self._models.items():
            for metric, value in document["quality"].get(how, {}).items():
                family.add_metric([model, metric], value)
        return family

    def _drift(self) -> Metric:
        """Only of the live version: a retired one has no window that moves."""
        family = GaugeMetricFamily("mlops_drift_psi", "Bias-corrected PSI", labels=["model", "column"])
        for model, _, role, document in self._versions:
            for drift in document["drift"]:
                if role == "champion" and drift["psi_corrected"] is not None:
                    family.add_metric([model, drift["column"]], drift["psi_corrected"])
        return family


def _cumulated(ends: tuple[int, ...], cells: list[int], unit: float) -> Iterator[tuple[str, float]]:
    total = 0
    for end, count in zip([*ends, None], cells, strict=True):
        total += count
        yield ("+Inf" if end is None else repr(end / unit)), total
