"""What a project file may ask of the feature store, and what a mistake costs: a sentence with its place."""

import sys
from pathlib import Path

import polars as pl
import pytest

from mlops_ray import config, expressions
from mlops_ray.errors import ConfigError
from mlops_ray.features.definitions import FeatureSet, compile_features, table_name
from mlops_ray.features.lookup import point_in_time
from mlops_ray.schema import INSTANT

PROJECTS = Path(__file__).parent.parent / "fixtures" / "projects"
DAY = 86_400_000_000

PROJECT = """
project: p
sources:
  orders:
    path: orders.csv
    entity: customer
    event_time: {column: at, timezone: UTC}
    columns:
      customer: {type: string}
      at: {type: datetime}
      shop: {type: category}
      amount: {type: float}
      tips: {type: int}
      paid: {type: bool}
  shops:
    path: shops.csv
    entity: id
    time: none
    columns: {id: {type: category}, kind: {type: category, categories: [food, books]}, size: {type: int}}
features:
FEATURES
target: {source: orders, expr: paid, horizon: 0s, task: classification}
"""


LEAKY = """
project: p
sources:
  orders: &orders
    path: orders.csv
    entity: customer
    event_time: {column: at, timezone: UTC}
    known_at: {after_event: 1h}
    derive: {big: amount > 100}
    columns:
      customer: {type: string}
      amount: {type: float}
      tips: {type: int}
      paid: {type: bool}
      big: {type: bool}
  again: {<<: *orders, where: tips > 0}
  other: {<<: *orders, path: others.csv}
features:
  o: {source: orders, features: {k: {latest: paid}}}
target: {source: orders, expr: paid, horizon: 0s, task: classification}
"""


def compiled(folder: Path, features: str) -> FeatureSet:
    file = folder / "p.yaml"
    file.write_text(PROJECT.replace("FEATURES", features))
    return compile_features(config.load(file, {}))


@pytest.mark.parametrize(
    ("name", "features", "asked"),
    [
        ("cases_by_region", ("cases_7d_ago", "cases_28d", "weekday", "region"), ("region", "time")),
        ("price_stream", ("price_before", "price_day_before"), ("time",)),
        (
            "readmission",
            ("beds", "age", "gender", "pregnant"),
            ("subject_id", "ward_id", "admitted", "age", "gender", "pregnant"),
        ),
    ],
)
def test_the_other_shapes_of_projects_have_features(
    name: str, features: tuple[str, ...], asked: tuple[str, ...]
) -> None:
    found = compile_features(config.load(PROJECTS / f"{name}.yaml", {}))
    assert found.names == features
    assert found.request.names == asked


def test_a_key_may_be_called_otherwise_in_the_request(tmp_path: Path) -> None:
    found = compiled(
        tmp_path, "  shop: {source: shops, join_keys: {shop: id}, features: {kind: {latest: kind}}}"
    )
    (feature,) = found.stored
    assert (feature.on, found.reads[0][0].keys) == (("shop",), ("id",))
    assert found.request.names == ("customer", "shop", "at")
    assert found.columns[0].categories == ("food", "books"), "what a column may be, its feature may be"


def test_a_ttl_limits_the_latest_values_of_its_view_alone(tmp_path: Path) -> None:
    found = compiled(
        tmp_path,
        "  o: {source: orders, ttl: 2d, features: {last: {latest: amount}, sum_1d: {window: "
        "{of: amount, agg: sum, over: 1d}}}}",
    )
    assert [feature.ttl_us for feature in found.stored] == [2 * DAY, None]
    assert found.table_reach_us("orders") == 2 * DAY


def test_a_lag_in_rows_is_a_time_where_rows_are_known_by_their_order() -> None:
    found = compile_features(config.load(PROJECTS / "price_stream.yaml", {}))
    assert [(feature.kind, feature.ago_us) for feature in found.stored] == [
        ("value_at", DAY // 48),
        ("value_at", DAY),
    ]


def test_a_function_beside_the_project_file_is_a_feature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_features.py").write_text("def share(tips, amount):\n    return tips / amount\n")
    monkeypatch.setenv(expressions.SEARCH_PATH, str(tmp_path))
    monkeypatch.setattr("sys.path", [*sys.path])
    found = compiled(
        tmp_path,
        "  row: {on_request: {share: {function: {path: own_features.share, inputs: [tips, amount]}}}}",
    )
    rows = pl.DataFrame(
        {"customer": ["a", "b"], "at": [0, 0], "tips": [1, 2], "amount": [4.0, None]},
        schema_overrides={"at": INSTANT},
    )
    assert point_in_time(rows, {}, found)["share"].to_list() == [0.25, None]
    assert FeatureSet.from_json(found.to_json()) == found


def test_a_feature_has_the_type_of_what_it_is_made_of(tmp_path: Path) -> None:
    found = compiled(
        tmp_path,
        "  o: {source: orders, features: {a: {latest: shop}, b: {latest: tips}, "
        "c: {value_at: {of: paid, ago: 1d}}, d: {window: {of: shop, agg: count, over: 1d}}, "
        "e: {window: {of: tips, agg: mean, over: 1d}}, f: {window: {of: shop, agg: last, over: 1d}}}}",
    )
    assert [column.type for column in found.columns] == [
        "category",
        "int",
        "bool",
        "int",
        "float",
        "category",
    ]


def test_the_same_definition_has_one_identity_whatever_it_is_called(tmp_path: Path) -> None:
    one = compiled(tmp_path, "  o: {source: orders, features: {a: {latest: amount}, b: {latest: tips}}}")
    two = compiled(tmp_path, "  x: {source: orders, features: {other: {latest: amount}}}")
    assert one.identity("a") == two.identity("other")
    assert one.identity("a") != one.identity("b")


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (
            "  o: {source: shops, features: {k: {latest: kind}}}",
            "features.o: the key 'id' is no column of the",
        ),
        (
            "  o: {source: shops, join_keys: {shop: di}, features: {k: {latest: kind}}}",
            "features.o.join_keys: 'di' is no key of the view; known here: id",
        ),
        (
            "  o: {source: shops, join_keys: {shop: id}, features: {k: {value_at: {of: size, ago: 1d}}}}",
            "features.o.features.k: 'shops' has no time, so it has latest values only",
        ),
        (
            "  o: {source: orders, features: {k: {window: {of: shop, agg: sum, over: 1d}}}}",
            "features.o.features.k: sum of 'shop', which is of type category",
        ),
        (
            "  o: {source: orders, features: {k: {lag: {of: amount, rows: 1}}}}",
            "features.o.features.k: lag counts rows",
        ),
        (
            "  row: {columns: [amount, paid]}",
            "target.expr: is made of 'paid', which a request holds",
        ),
        (
            "  row: {on_request: {amount: {expr: amount / 1000}}}",
            "features.row.on_request.amount: 'amount' is a column of the request, or the label; call",
        ),
        (
            "  o: {source: orders, features: {label: {latest: amount}}}",
            "features.o.features.label: 'label' is a column of the request, or the label",
        ),
        ("  row: {on_request: {x: {expr: amount / COUNT(*)}}}", "reads other rows than its own"),
        ("  row: {on_request: {x: {expr: at - NOW()}}}", "is another value each time that it is computed"),
        ("  row: {on_request: {x: {expr: '1'}}}", "reads no column"),
        (
            "  o: {source: shops, join_keys: {tips: id}, features: {k: {latest: kind}}}",
            "features.o: the key 'tips' is int in the target's source and category here",
        ),
        (
            "  o: {source: shops, ttl: 1d, join_keys: {shop: id}, features: {k: {latest: kind}}}",
            "features.o.ttl: a table without time has no age",
        ),
        (
            "  row: {columns: [amonut]}",
            "features.row: 'amonut' is no column of the target's source; did you mean",
        ),
        (
            "  row: {on_request: {x: {function: {path: operator.ad, inputs: [amount]}}}}",
            "the module 'operator' has no function 'ad'; did you mean",
        ),
    ],
)
def test_a_mistake_is_one_sentence_with_its_place(tmp_path: Path, features: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compiled(tmp_path, features)
    assert said in str(raised.value)
    is_function = "operator" in said
    assert is_function or str(raised.value).startswith(f"{tmp_path / 'p.yaml'}:2")


ANSWER = "the answer would be among its inputs"


@pytest.mark.parametrize(
    ("changes", "is_refused"),
    [
        ({}, True),
        ({"horizon: 0s": "horizon: 1d"}, False),
        ({"latest: paid": "latest: tips"}, False),
        ({"latest: paid": "value_at: {of: paid, ago: 0s}"}, True),
        ({"latest: paid": "value_at: {of: paid, ago: 1us}"}, False),
        ({"latest: paid": "window: {of: paid, agg: mean, over: 7d}"}, True),
        ({"expr: paid": "expr: big"}, False),
        ({"expr: paid": "expr: big", "latest: paid": "latest: amount"}, True),
        ({"expr: paid": "expr: amount > 3", "latest: paid": "latest: big"}, True),
        # The same file, read as another source: the same rows.
        ({"{source: orders, f": "{source: again, f"}, True),
        ({"{source: orders, f": "{source: other, f"}, False),
        # As known at each P: a row that is known an hour after it happened is not known to itself.
        ({"task:": "known_at: event, task:"}, False),
        ({"task:": "known_at: event, task:", "after_event: 1h": "after_event: 0s"}, True),
        ({"task:": "known_at: event, task:", "known_at: {after_event: 1h}": "season: 7d"}, False),
    ],
)
def test_a_feature_that_would_hold_the_answer_is_refused(
    tmp_path: Path, changes: dict[str, str], is_refused: bool
) -> None:
    text = LEAKY
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    file = tmp_path / "p.yaml"
    file.write_text(text)
    if not is_refused:
        compile_features(config.load(file, {}))
        return
    with pytest.raises(ConfigError, match=ANSWER) as raised:
        compile_features(config.load(file, {}))
    assert "features.o.features.k" in str(raised.value)


def test_a_request_cannot_hold_what_the_target_is_derived_from(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(
        LEAKY.replace("o: {source: orders, features: {k: {latest: paid}}}", "o: {columns: [amount]}").replace(
            "expr: paid", "expr: big"
        )
    )
    with pytest.raises(ConfigError, match=r"target\.expr: is made of 'amount'"):
        compile_features(config.load(file, {}))


def test_a_word_that_means_nothing_in_files_means_nothing_in_a_request(tmp_path: Path) -> None:
    found = compiled(tmp_path, "  row: {columns: [shop]}")
    assert found.request.null_values == ("",)
    file = tmp_path / "p.yaml"
    file.write_text(file.read_text().replace("path: orders.csv", "path: orders.csv\n    null_values: NA"))
    words = compile_features(config.load(file, {})).request
    rows = pl.DataFrame({"customer": ["c"], "at": ["2026-11-01T00:00Z"], "shop": ["NA"]})
    typed, failures = words.check(rows)
    assert (typed["shop"].to_list(), failures.height) == ([None], 0)
    assert FeatureSet.from_json(compile_features(config.load(file, {})).to_json()).request == words


@pytest.mark.parametrize(
    "text", ["x - QUANTILE_CONT(x, 0.5)", "CORR(x, y)", "ROW_NUMBER() OVER () + x", "x - FIRST(x)", "SUM(x)"]
)
def test_an_expression_that_reads_other_rows_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="reads other rows than its own"):
        expressions.compile_sql(text)


def test_what_stands_in_text_is_no_part_of_an_expression() -> None:
    assert expressions.compile_sql("x = 'Agg NOW()' OR \"Over\" > 1").columns == {"x", "Over"}


def test_another_function_under_the_same_name_is_another_feature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(expressions.SEARCH_PATH, str(tmp_path))
    monkeypatch.setattr("sys.path", [*sys.path])
    row = "  row: {on_request: {double: {function: {path: changing_features.f, inputs: [amount]}}}}"
    digests = []
    for factor in (2, 3):
        (tmp_path / "changing_features.py").write_text(f"def f(x):\n    return x * {factor}\n")
        digests.append(compiled(tmp_path, row).digest)
    assert digests[0] != digests[1]


def test_what_a_new_default_or_a_season_says_does_not_start_a_history_anew(tmp_path: Path) -> None:
    source = config.load(PROJECTS / "cases_by_region.yaml", {}).sources["cases"]
    other = source.model_copy(update={"season": None})
    assert table_name("cases", source) == table_name("cases", other)
    assert table_name("cases", source) != table_name("cases", source.model_copy(update={"entity": ()}))
