"""The project file: what it may say, and what a mistake in it costs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from mlops_ray import config
from mlops_ray.config.project import Postprocess, Retrain
from mlops_ray.errors import ConfigError

from .conftest import EXAMPLE

FIXTURES = Path(__file__).parent / "fixtures" / "projects"


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.yaml")), ids=lambda p: p.stem)
def test_projects_of_other_shapes_parse(path: Path) -> None:
    assert config.load(path, {}).project == path.stem.replace("_", "-")


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_project_is_frozen(path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        config.load(path, {}).project = "other"  # type: ignore[misc]


#: What is changed, into what, and what the message says; the line is that of the change.
MISTAKES = {
    "delimiter: ": ("delimeter: ", "unknown key 'delimeter'; did you mean 'delimiter'?"),
    "unpivot:": ("unpivott:", "did you mean 'unpivot'?"),
    "horizon: 24h": ("horizon: a day", "'a day' is not a duration; write e.g. 15m, 24h, 7d"),
    "entity: site": ("entity: sit", "names 'sit', which is not among columns; did you mean 'site'?"),
    "of: load, ago: 1d": ("of: laod, ago: 1d", "did you mean 'load'?"),
    "ago: 1d": ("ago: 23h", "ago is shorter than the horizon"),
    "load < 1.4 OR": ("load <> < OR", "not a SQL expression"),
    ", timezone: Europe/Berlin": ("", "stamps without an offset need timezone"),
    "Europe/Berlin": ("Europe/Berln", "did you mean 'Europe/Berlin'?"),
    "min: 0,": ("min: zero,", "sources.meter.columns.load.min"),
    "project: factory-load": ("project: Factory Load", "project: String should match pattern"),
    "target: {": ("targets: {", "did you mean 'target'?"),
    "expr: load, ": ("", "the key 'expr' is missing"),
    "agg: mean, ": ("agg: quantile, ", "agg: quantile, and it alone, says which, e.g. quantile: 0.9"),
    "over: 30d": ("over: 15000000w", "'15000000w' is longer than a century"),
    "every: 1h": ("every: 0s", "must be longer than nothing"),
    "country: DE": ("country: XX", "no holidays of 'XX' are known; write the country as ISO 3166 does"),
    "hour_of: time": (
        "hour_of: time, timezone: Berlin",
        "no time zone 'Berlin'; did you mean 'Europe/Berlin'?",
    ),
    "known_at: {after_event: 0s}": ("known_at: 6h", "a mapping is needed, e.g. {key: value}"),
    "meter:": ("../meter:", "sources.../meter: String should match pattern"),
    "load: {type": ("_load: {type", "columns._load: is a name of ours; call the column otherwise"),
    "site: {type": ("event_time: {type", "columns.event_time: is a name of ours"),
    "event_time: {column: time": ("event_time: {column: _row", "event_time: '_row' is a name of ours"),
    "load: {type: float": ("^load$: {type: float", "is no name for a column"),
    "features:": ("sources: {}\nfeatures:", "the key 'sources' stands here twice"),
    "source: meter,": ("source: metre,", "names 'metre', which is no source; did you mean 'meter'?"),
}


@pytest.mark.parametrize("right", MISTAKES)
def test_a_mistake_in_the_file_is_one_sentence_with_its_line(right: str, tmp_path: Path) -> None:
    wrong, says = MISTAKES[right]
    text = EXAMPLE.read_text()
    file = tmp_path / "project.yaml"
    file.write_text(text.replace(right, wrong, 1))
    line = text[: text.index(right)].count("\n") + 1
    with pytest.raises(ConfigError) as error:
        config.load(file, {})
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{file}:{line}: ")


#: Nine to the power of eleven, in twelve lines.
BOMB = "\n".join(["a0: &a0 [1]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &x [*x]", "too large, or an alias (*NAME) stands within what it names"),
        (BOMB, "too large, or an alias"),
        (f"a: {'[' * 5000}{']' * 5000}", "not YAML: maximum recursion depth exceeded"),
        ("project: 2016-13-45", "not YAML: month must be in 1..12"),
        ("project: a\0", "not YAML: unacceptable character #x0000"),
        ("? [a]\n: 1", "p.yaml:1: a key is a word"),
        ("a: {<<: {x: 1, x: 2}}", "p.yaml:1: the key 'x' stands here twice"),
        ("include: 5", "p.yaml:1: include: a path, or a list of them, is needed"),
    ],
    ids=["itself", "bomb", "deep", "date", "NUL", "key", "merged", "include"],
)  # fmt: skip
def test_what_is_no_sane_yaml_costs_one_sentence(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        config.load(file, {})
    assert says in str(error.value)


class _Editor(yaml.SafeLoader):
    """YAML as editors read it before they check it: a date is text."""


_Editor.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@pytest.mark.parametrize(
    "path",
    [*(path for path in EXAMPLE.parent.glob("*.yaml") if path.stem != "prices"), *FIXTURES.glob("*.yaml")],
    ids=lambda path: path.stem,
)
def test_the_schema_for_editors_takes_what_we_take(path: Path) -> None:
    jsonschema.validate(yaml.load(path.read_text(), _Editor), config.json_schema())


def test_the_schema_for_editors_refuses_what_we_refuse() -> None:
    tree = yaml.load(EXAMPLE.read_text().replace("unpivot:", "unpivott:"), _Editor)
    with pytest.raises(jsonschema.ValidationError, match="unpivott"):
        jsonschema.validate(tree, config.json_schema())


def _defaults(schema: Any) -> Iterator[dict[str, Any]]:
    children = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    if isinstance(schema, dict) and "default" in schema:
        yield schema
    for child in children:
        yield from _defaults(child)


def test_the_defaults_that_the_schema_tells_are_ones_that_a_file_may_say() -> None:
    schema = config.json_schema()
    found = list(_defaults(schema))
    assert any(one["default"] == "90d" for one in found)
    for one in found:
        jsonschema.Draft202012Validator({**one, "$defs": schema["$defs"]}).validate(one["default"])


def test_a_missing_file_and_broken_yaml_are_errors_that_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the project file .*absent\.yaml"):
        config.load(tmp_path / "absent.yaml", {})
    (tmp_path / "broken.yaml").write_text("project: [x\nsources: {")
    with pytest.raises(ConfigError, match=r"broken\.yaml:\d+: not YAML"):
        config.load(tmp_path / "broken.yaml", {})


def test_variables_come_from_the_environment_and_an_unset_one_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "project.yaml"
    file.write_text(EXAMPLE.read_text() + 'tracking: "${TRACKING}"\n')
    assert config.load(file, {"TRACKING": "http://mlflow:5000"}).tracking == "http://mlflow:5000"
    with pytest.raises(
        ConfigError, match=r"project.yaml:\d+: tracking: the environment variable TRACKING is not set"
    ):
        config.load(file, {})


def test_an_alert_whose_variable_is_unset_is_off_with_a_warning() -> None:
    assert [alert.log for alert in config.load(EXAMPLE, {}).monitoring.alerts] == [True]
    assert config.warnings(EXAMPLE, {}) == [
        "the alert that needs ${ALERT_URL} is off, since ALERT_URL is not set"
    ]
    assert len(config.load(EXAMPLE, {"ALERT_URL": "http://x"}).monitoring.alerts) == 2


def test_relative_paths_resolve_against_the_file_and_packages_against_their_data() -> None:
    project = config.load(EXAMPLE, {})
    assert project.storage == str(EXAMPLE.parent / ".mlops")
    assert project.sources["meter"].path is not None
    assert Path(project.sources["meter"].path[0].path).exists()


def test_features_of_another_file_are_included(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    start, end = text.index("features:"), text.index("target:")
    (tmp_path / "shared.yaml").write_text(text[start:end])
    (tmp_path / "project.yaml").write_text("include: shared.yaml\n" + text[:start] + text[end:])
    assert config.load(tmp_path / "project.yaml", {}).features == config.load(EXAMPLE, {}).features


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("replicas: {min: 3, max: 2}", "serving.replicas.max: min: 3 is more than max: 2"),
        ("replicas: {min: 2, initial: 1}", "serving.replicas.initial: initial: 1 is not between 2 and 8"),
        ("resources: {machine: a b}", "serving.resources.machine"),
        ("resources: {labels: {region: eu-de}}", "is said by a source's policy: allowed_regions"),
        ("resources: {labels: {pool: in(a}}", "serving.resources.labels.pool"),
        ("resources: {labels: {-pool: a}}", "serving.resources.labels"),
    ],
)
def test_a_mistake_in_where_replicas_run_is_said_with_its_line(tmp_path: Path, said: str, says: str) -> None:
    text = EXAMPLE.read_text()
    start = text.index("serving:")
    end = text.index("\n\n", start)
    file = tmp_path / "project.yaml"
    file.write_text(f"{text[:start]}serving: {{{said}}}{text[end:]}")
    with pytest.raises(ConfigError) as error:
        config.load(file, {})
    assert says in str(error.value)
    assert str(error.value).startswith(f"{file}:{text[:start].count(chr(10)) + 1}: serving")


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("of: load, ago: 1d", "of: laod, ago: 1d", "features.site_load.features.load_1d_ago: reads 'laod'"),
        ("features:", "sources: 5\nfeatures:", "sources: a mapping is needed"),
    ],
)
def test_a_mistake_in_an_included_file_is_told_by_that_file_and_its_line(
    right: str, wrong: str, says: str, tmp_path: Path
) -> None:
    text = EXAMPLE.read_text()
    start, end = text.index("features:"), text.index("target:")
    shared = text[start:end].replace(right, wrong, 1)
    (tmp_path / "shared.yaml").write_text(shared)
    (tmp_path / "project.yaml").write_text("include: shared.yaml\n" + text[:start] + text[end:])
    with pytest.raises(ConfigError) as error:
        config.load(tmp_path / "project.yaml", {})
    line = shared[: shared.index(wrong)].count("\n") + 1
    assert str(error.value).startswith(f"{tmp_path}/shared.yaml:{line}: {says}")


def test_a_mistake_in_a_merged_part_is_told_by_the_line_where_it_is_written(tmp_path: Path) -> None:
    text = EXAMPLE.read_text().replace("  meter:\n", "  meter: &meter\n")
    file = tmp_path / "project.yaml"
    for other, found_at, says in (
        ("entity: sit", "entity: sit}", "sources.other.entity: names 'sit'"),
        ("columns: {site: {type: category}}", "resample: {", "sources.other.resample: names 'load'"),
    ):
        merged = text.replace("\nfeatures:", f"\n  other: {{<<: *meter, {other}}}\nfeatures:", 1)
        file.write_text(merged)
        with pytest.raises(ConfigError) as error:
            config.load(file, {})
        line = merged[: merged.index(found_at)].count("\n") + 1
        assert str(error.value).startswith(f"{file}:{line}: {says}")


def test_a_file_of_a_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "costly_to_import").mkdir()
    (tmp_path / "costly_to_import" / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    found = config.resolve("package://costly_to_import/data/x.csv", Path())
    assert found == str(tmp_path / "costly_to_import" / "data" / "x.csv")
    with pytest.raises(ConfigError, match=r"called 'costly' \(package://costly/x.csv\); install it first"):
        config.resolve("package://costly/x.csv", Path())


def test_bounds_that_leave_nothing_between_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"clip is \[least, most\], and 1 is not below 0"):
        Postprocess(clip=(1, 0))
    assert Postprocess(clip=(None, 0)).clip == (None, 0)


@pytest.mark.parametrize("at_most", ["1/0s", "1/0.0d", "3/0.0000001s"])
def test_so_many_retrainings_in_no_time_are_refused(at_most: str) -> None:
    with pytest.raises(
        ValidationError, match=f"'{at_most}' is in no time at all: say in how long, e.g. 1/7d"
    ):
        Retrain(at_most=at_most)
    assert Retrain(at_most="0/7d").at_most == "0/7d"


@pytest.mark.parametrize(
    ("route", "said"),
    [
        ("{webhook: hooks.example.org}", "monitoring.alerts.0.webhook: an address begins with http"),
        ("{webhook: 'https://h/s3cret', log: true}", "say exactly one of webhook, email, log, prometheus"),
        ("{email: 'smtp://ann:s3cret@host/nobody'}", "is no mailbox"),
        ("{email: 'smtp://ann:s3cret@host/a@b.org?from=a%0AB@c.org'}", "is no mailbox"),
        ("{email: 'smtp://ann:s3cret@host/a@b.org%0d%0aBcc:c@d.org'}", "is no mailbox"),
        ("{email: 'smtp://ann:s3cret/x@host/a@b.org'}", "cannot be read as an address"),
        ("{email: 'smtp://ann:s3cret#x@host/a@b.org'}", "write e.g. smtp://"),
        ("{email: 'smtp://ann:s3cret@host/a@b.org?tls=no'}", "everybody on the way could read the password"),
        ("{email: 'smtp://ann:s3cret@host/a@b.org?form=a@b.org'}", "an option is not known"),
        ("{email: 'smtp://ann:1?s3cret=x@host/a@b.org'}", "an option is not known"),
        ("{email: 'smtps://host/a@b.org?tls=no'}", "with smtps it is yes"),
        ("{email: 'smtp://ann:s3cret%C3%BC@host/a@b.org'}", "signs of ASCII alone"),
        ("{email: 'mailto:a@b.org'}", "write e.g. smtp://"),
    ],
)
def test_an_alert_that_cannot_be_sent_is_an_error_that_shows_no_secret(
    tmp_path: Path, route: str, said: str
) -> None:
    file = tmp_path / "project.yaml"
    text = EXAMPLE.read_text()
    assert '{webhook: "${ALERT_URL}"}' in text
    file.write_text(text.replace('{webhook: "${ALERT_URL}"}', route))
    with pytest.raises(ConfigError) as raised:
        config.load(file, {})
    assert said in str(raised.value)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("right", "wrong"),
    {
        '{webhook: "${ALERT_URL}"}': "'${ALERT_URL}'",
        "expr: load, ": "'${ALERT_URL}', ",
        "meter:\n": "meter: '${ALERT_URL}'\n  other:\n",
    }.items(),
)
def test_an_error_shows_no_secret_that_stands_where_a_mapping_is_needed(
    tmp_path: Path, right: str, wrong: str
) -> None:
    file = tmp_path / "project.yaml"
    text = EXAMPLE.read_text()
    assert right in text
    file.write_text(text.replace(right, wrong, 1))
    with pytest.raises(ConfigError) as raised:
        config.load(file, {"ALERT_URL": "https://hooks.example.org/s3cret"})
    assert "s3cret" not in str(raised.value)


def of_costs(tmp_path: Path, said: str) -> config.Cost:
    file = tmp_path / "project.yaml"
    file.write_text(f"{EXAMPLE.read_text()}cost: {{{said}}}\n")
    return config.load(file, {}).cost


def test_a_load_is_a_number_a_day_of_them_or_a_file_beside_the_project(tmp_path: Path) -> None:
    assert of_costs(tmp_path, "load: 20").load == 20
    assert of_costs(tmp_path, f"load: {list(range(24))}").load == tuple(map(float, range(24)))
    recorded = of_costs(tmp_path, "load: {recorded: monday.csv}").load
    assert isinstance(recorded, config.Recorded)
    assert recorded.recorded == str(tmp_path / "monday.csv")


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("load: [1, 2]", "cost.load"),
        ("load: -1", "cost.load"),
        ("load: .inf", "cost.load"),
        ("load: {recorded: a.csv, by: hour}", "unknown key 'by'"),
        ("value: {}", "say exactly one of per_unit_of_error, matrix"),
        ("value: {matrix: {costs: [[0, 1]], currency: EUR}}", "cost.value.matrix.costs"),
        (
            "value: {matrix: {costs: [[0, 1], [10, 0]], currency: EUR}}",
            "is for a classification, and target.task is regression",
        ),
        ("budget: {per_day: {amount: 20, currency: EUR}, then: stop}", "cost.budget.then"),
        ("budget: {per_day: {amount: -20, currency: EUR}}", "cost.budget.per_day.amount"),
        ("storage: 0.02", "cost.storage"),
        ("training_life: 0d", "must be longer than nothing"),
        (
            "value_per_prediction: {amount: 1, currency: EUR}, budget: {per_day: {amount: 1, currency: USD}}",
            "USD beside EUR: say all in one currency, at your own rate",
        ),
    ],
)
def test_a_mistake_in_costs_is_said_with_its_line(tmp_path: Path, said: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        of_costs(tmp_path, said)
    line = EXAMPLE.read_text().count("\n") + 1
    assert says in str(error.value)
    assert f"project.yaml:{line}: cost" in str(error.value)


@pytest.mark.parametrize(
    ("cost", "says"),
    [
        ("{}", "is told by what machines cost: name their prices"),
        (
            "{prices: prices.yaml, storage: {amount: 0.02, currency: USD}}",
            "EUR beside USD: say all in one currency, at your own rate",
        ),
        ("{prices: prices.yaml}", None),
        ("{prices: prices.yaml, storage: {amount: 0.02, currency: EUR}}", None),
    ],
)
def test_what_a_search_may_cost_is_told_by_prices_in_their_currency(
    tmp_path: Path, cost: str, says: str | None
) -> None:
    file, limit = tmp_path / "project.yaml", "time_limit: 10m"
    text = EXAMPLE.read_text()
    asked = f"{limit}, budget: {{amount: 2, currency: EUR}}"
    file.write_text(f"{text.replace(limit, asked)}cost: {cost}\n")
    if says is None:
        budget = config.load(file, {}).training.search.budget
        assert budget is not None
        assert (budget.amount, budget.currency) == (2, "EUR")
        return
    with pytest.raises(ConfigError) as error:
        config.load(file, {})
    line = text[: text.index(limit)].count("\n") + 1
    assert str(error.value).startswith(f"{file}:{line}: training.search.budget: {says}")


def test_who_hears_of_the_audit_record_is_a_file_outside_the_storage(tmp_path: Path) -> None:
    file = tmp_path / "project.yaml"
    text = EXAMPLE.read_text()
    file.write_text(f"{text}\naudit: {{heads: heads.jsonl}}\n")
    assert config.load(file, {}).audit.heads == str(tmp_path / "heads.jsonl")
    for heads in (".mlops/heads.jsonl", "x/../.mlops/heads.jsonl", "s3://records/heads.jsonl"):
        file.write_text(f"{text}\naudit: {{heads: {heads}}}\n")
        with pytest.raises(ConfigError, match=r"yaml:\d+: audit.heads: is no file outside the storage"):
            config.load(file, {})


def _settings(schema: dict[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, said in schema.get("properties", {}).items():
        yield f"{name}.{key}", said


def test_the_schema_for_editors_describes_every_setting() -> None:
    schema = config.json_schema()
    parts = {"project": schema} | schema["$defs"]
    found = [each for name, part in parts.items() for each in _settings(part, name)]
    assert len(found) > 200
    # What is said of a part in the same words stands there alone.
    described = {name for name, part in parts.items() if part.get("description")}
    lacking = [
        name
        for name, said in found
        if not said.get("description") and said.get("$ref", "").rpartition("/")[2] not in described
    ]
    assert lacking == []
