"""SQL expressions read their own row and nothing else; a function's digest is that of its code."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from mlops_ray.errors import ConfigError, DataError
from mlops_ray.expressions import FUNCTIONS, MAX_DEPTH, SEARCH_PATH, compile_sql, function_digest
from mlops_ray.features.definitions import Computed
from mlops_ray.features.on_request import compute

ROWS = pl.DataFrame(
    {
        "x": [1.5, -2.0, 0.0, None, float("nan"), float("inf"), 1e300],
        "n": [1, -2, 0, None, 7, 2**62, 3],
        "s": ["a b", "", "12", None, "ä", "2016-02-30", "2016-01-01"],
        "b": [True, False, True, None, False, True, False],
        "t": [datetime(2016, 1, 1, 5, tzinfo=UTC), None, *[datetime(1821, 5, 5, tzinfo=UTC)] * 5],
    }
)
UNARY = """ABS ACOS
ACOSD ASIN ASIND ATAN ATAND CBRT CEIL CEILING COS COSD COT COTD DEGREES ERF EXP FLOOR LN LOG10
LOG1P LOG2 RADIANS ROUND SIGN SIN SIND SQRT TAN TAND TRUNC TRUNCATE"""
OF_TIME = "DAY DAYOFMONTH DAYOFWEEK DAYOFYEAR HOUR MINUTE MONTH QUARTER SECOND WEEK YEAR"
OF_TEXT = """BIT_LENGTH CHARACTER_LENGTH CHAR_LENGTH INITCAP LENGTH LOWER LTRIM NORMALIZE OCTET_LENGTH REVERSE
RTRIM TRIM UPPER"""
#: What each function that an expression may call is called with.
CALLS = {
    **{name: ["x"] for name in UNARY.split()},
    **{name: ["t"] for name in OF_TIME.split()},
    **{name: ["s"] for name in OF_TEXT.split()},
    **{name: ["x, n"] for name in ("ATAN2", "ATAN2D", "LOG", "MOD", "POW", "POWER")},
    **{name: ["x AS INTEGER", "s AS INT", "s AS DOUBLE"] for name in ("CAST", "SAFE_CAST", "TRY_CAST")},
    **{name: ["x, n"] for name in ("COALESCE", "GREATEST", "IFNULL", "LEAST", "NULLIF")},
    **{name: ["s, '%Y-%m-%d'"] for name in ("DATE", "DATETIME", "TIMESTAMP", "STRPTIME")},
    **{name: ["s, '1'", "s, s"] for name in ("ENDS_WITH", "STARTS_WITH", "STRPOS", "CONCAT")},
    **{name: ["s, 1", "s, n"] for name in ("LEFT", "RIGHT")},
    **{name: ["s, 1, 2", "s, 2"] for name in ("SUBSTR", "SUBSTRING")},
    "CONCAT_WS": ["'-', s, s"],
    "DATE_PART": ["'year', t"],
    "EXTRACT": ["YEAR FROM t"],
    "IF": ["b, x, n"],
    "PI": [""],
    "POSITION": ["'1' IN s"],
    "REGEXP_LIKE": ["s, '^[0-9]+$'"],
    "REGEXP_REPLACE": ["s, '[0-9]', '#'"],
    "REPLACE": ["s, '1', '2'"],
    "SPLIT_PART": ["s, '-', 2"],
    "STRFTIME": ["t, '%FT%R'"],
    "TIME": ["s, '%H:%M'"],
}
#: What else the language has.
SYNTAX = [
    "x >= 1 AND n <= 2 OR NOT b",
    "n <> 1 AND n != 2 AND (n == 7 OR n = 3)",
    "s || ' ' || s",
    "n IN (1, -2, 7)",
    "n NOT IN (1, n)",
    "x IN (n)",
    "x BETWEEN -1 AND n",
    "x IS NULL OR s IS NOT NULL",
    "x IS DISTINCT FROM n",
    "s LIKE '1%' OR s ILIKE 'A%' OR s RLIKE '^2'",
    "CASE WHEN x > 1 THEN 'high' WHEN (x < 1) THEN 'low' ELSE s END",
    "t + INTERVAL '1 day' > t",
    "t > TIMESTAMP '2016-01-01 00:00:00' OR b",
    "TRIM(LEADING 'a' FROM s) = SUBSTRING(s FROM 1 FOR 2)",
    "CAST(x AS DECIMAL(10, 2)) + TRUNC(n / 2) - n % 3 * -1.5e3",
]


def called(name: str) -> list[str]:
    return [f"{name}({given})" + (" + x" if name == "PI" else "") for given in CALLS[name]]


def alone(text: str, rows: pl.DataFrame) -> list[object]:
    expression = compile_sql(text).polars
    return [rows[at : at + 1].select(r=expression)["r"][0] for at in range(rows.height)]


def test_each_allowed_function_has_its_example() -> None:
    assert CALLS.keys() == FUNCTIONS


@pytest.mark.parametrize("text", [text for name in CALLS for text in called(name)] + SYNTAX)
def test_a_batch_equals_its_rows_one_by_one_whatever_the_values(text: str) -> None:
    for rows in (ROWS, ROWS.reverse()):
        if "TIMESTAMP '" in text:
            rows = rows.with_columns(pl.col("t").dt.replace_time_zone(None))
        found = rows.select(r=compile_sql(text).polars)["r"].to_list()
        assert list(map(str, found)) == list(map(str, alone(text, rows)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = ANY(n)", "ANY is no function"),
        ("x <> any (n)", "ANY is no function"),
        ("x > ALL(n)", "ALL is no function"),
        ("x = SOME(n)", "SOME is no function"),
        ("x IN (VALUES (1))", "VALUES cannot stand here"),
        ("x IN (TABLE t)", "TABLE cannot stand here"),
        ("EXISTS(x)", "EXISTS is no function"),
        ("ABS(x) OVER (PARTITION BY s)", "OVER cannot stand here"),
        ("ABS(x) OVER w", "OVER cannot stand here"),
        ('"SUM"(x)', '"SUM" is no function'),
        ("sum.abs(x)", "'.abs(x)' cannot stand"),
        ("DATE(s) IS NULL", "reads other rows than its own: give the format"),
        ("x FROM x", "FROM cannot stand here"),
        ("ABS(x FROM n)", "FROM cannot stand here"),
        ('"^.*$" + x', "a pattern of column names"),
        ("x AS other", "AS cannot stand here"),
        ("x other", "it has a name at its end"),
        ("x = $$SELECT$$", "'$$SELECT$$' cannot stand"),
        (r"s = E'\' OR x IN (SELECT 1) --'", "cannot stand"),
        (r"s = U&'\' OR x IN (SELECT 1) --'", "cannot stand"),
        ("x /* SELECT */ + 1", "cannot stand"),
        ("x -- 1", "cannot stand"),
        ("s = 'a", "cannot stand"),
        ("x::int", "CAST(x AS type)"),
        ("x // n", "TRUNC(x / y)"),
        ("`x`", "cannot stand"),
        ("CURRENT_DATE > t", "is another value each time"),
        ("GREATEST() + x", "not a SQL expression"),
    ],
)
def test_what_is_more_than_an_expression_over_one_row_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compile_sql(text)
    assert says in str(raised.value)


@pytest.mark.parametrize("source", ["read_csv('{}')", "'{}'", "READ_CSV ('{}')", '"{}"'])
@pytest.mark.parametrize(
    "text",
    ["x IN (SELECT y FROM {})", "x + (select y from {})", "x = ANY(SELECT y FROM {})", "x IN (FROM {})"],
)
def test_no_file_is_read_while_an_expression_is_compiled(
    text: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parsed(text: str) -> pl.Expr:
        raise AssertionError(f"Polars was given {text!r}")

    monkeypatch.setattr(pl, "sql_expr", parsed)
    secret = tmp_path / "secret.csv"
    secret.write_text("hunter2\n")
    with pytest.raises(ConfigError) as raised:
        compile_sql(text.format(source.format(secret)))
    assert "hunter2" not in str(raised.value)


def test_words_in_text_and_in_quoted_names_are_no_words_of_an_expression() -> None:
    text = """"SELECT" = 'x''FROM read_csv(1)' OR "a ""b"" (" > 1 OR current_load > 2 OR left > 1"""
    assert compile_sql(text).columns == {"SELECT", 'a "b" (', "current_load", "left"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("+".join(["x"] * 20_000), "is of 39,999 characters"),
        ("x" + " IS NULL" * 300, "has more than 400 names and signs"),
        ("(" * 40 + "x" + ")" * 40, "has more than 30 parentheses in one another"),
        ("CAST(" * 200 + "x" + " AS INT)" * 200, "has more than"),
    ],
)
def test_an_expression_that_is_too_long_or_too_deep_is_one_sentence(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compile_sql(text)
    assert says in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_the_deepest_expressions_that_are_allowed_run_in_a_small_stack() -> None:
    deep = [
        "+".join(["x"] * 200),
        "x" + " IS NULL" * 199,
        "CAST(" * MAX_DEPTH + "x" + " AS INT)" * MAX_DEPTH,
        "n IN (" + ",".join(str(n) for n in range(300)) + ")",
    ]
    run = f"""
import threading, polars as pl
from mlops_ray.expressions import compile_sql
def compute():
    for text in {deep!r}:
        pl.DataFrame({{"x": [1.0], "n": [1]}}).select(compile_sql(text).polars)
    print("done")
threading.stack_size(512 * 1024)
thread = threading.Thread(target=compute)
thread.start(); thread.join()
"""
    # A process of its own: what is too deep ends it.
    made = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=False)
    assert made.stdout == "done\n", made.stderr


def test_a_value_that_cannot_be_cast_or_read_is_null() -> None:
    rows = pl.DataFrame({"s": ["7", "x", None, "2016"]})
    for text, expected in {
        "CAST(s AS INTEGER)": [7, None, None, 2016],
        "cast (s AS INTEGER) > 7": [False, None, None, True],
        "YEAR(STRPTIME(s, '%Y'))": [None, None, None, 2016],
        "s = 'CAST(' OR s = '7'": [True, False, None, False],
        """s = '"strict":true' OR STRPTIME(s, '%Y') IS NULL""": [True, True, True, False],
    }.items():
        assert rows.select(r=compile_sql(text).polars)["r"].to_list() == expected


def test_a_function_of_another_type_than_declared_is_told_by_its_name_and_the_feature() -> None:
    feature = Computed("above", "function", "operator.add", inputs=("s", "s"), type="float")
    with pytest.raises(DataError, match=r"operator\.add returned values of type String .* feature 'above'"):
        compute(feature, pl.DataFrame({"s": ["a", "b"]}))
    assert compute(feature, pl.DataFrame({"s": [1, 2]})).to_list() == [2.0, 4.0]  # type: ignore[union-attr]


WRAPPER = """import functools
def safe(function):
    @functools.wraps(function)
    def wrapped(*columns): return function(*columns)
    return wrapped
"""
#: Files of a project, with VALUE for what changes; the function is own_code.of.f.
CODE = {
    "plain": {"of.py": "def f(x): return x + VALUE"},
    "decorated elsewhere": {
        "safe.py": WRAPPER,
        "of.py": "from own_code.safe import safe\nf = safe(lambda x: x + VALUE)",
    },
    "the decorator": {
        "safe.py": WRAPPER + "VALUE",
        "of.py": "import own_code.safe as s\n@s.safe\ndef f(x): return x",
    },
    "cached": {"of.py": "import functools\n@functools.lru_cache\ndef f(x): return x + VALUE"},
    "partial": {"of.py": "import functools\nf = functools.partial(lambda k, x: x + k, VALUE)"},
    "callable object": {"of.py": "class F:\n    def __call__(self, x): return x + VALUE\nf = F()"},
    "helper beside it": {"k.py": "k = VALUE", "of.py": "from .k import k\ndef f(x): return x + k"},
    "module beside it": {"k.py": "k = VALUE", "of.py": "from . import k\ndef f(x): return x + k.k"},
    "imported when called": {
        "../own_k.py": "k = VALUE",
        "of.py": "def f(x):\n    import own_k\n    return own_k.k",
    },
    "helper of a helper": {
        "j.py": "k = VALUE",
        "k.py": "from . import j",
        "of.py": "from .k import j\nf = j.__str__",
    },
    "the package": {"__init__.py": "k = VALUE", "of.py": "from own_code import k\ndef f(x): return x + k"},
    "imported in a ring": {
        "k.py": "import own_code.of\nk = VALUE",
        "of.py": "def f(x):\n    from .k import k\n    return k",
    },
    "made elsewhere": {"k.py": "def f(x): return x + VALUE", "of.py": "from own_code.k import f"},
}


@pytest.mark.parametrize("what", CODE)
def test_a_function_whose_code_changed_anywhere_in_the_project_has_another_digest(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SEARCH_PATH, str(tmp_path))
    monkeypatch.setattr("sys.path", [*sys.path])
    folder = tmp_path / "own_code"
    folder.mkdir()

    def digest(value: str) -> str:
        for name, text in CODE[what].items():
            (folder / name).write_text(text.replace("VALUE", value))
        return function_digest("own_code.of.f")

    try:
        first = digest("1")
        assert digest("22") != first
        (folder / "unused.py").write_text("k = 1")
        assert digest("1") == first
    finally:
        for name in [name for name in sys.modules if name.startswith("own_")]:
            del sys.modules[name]


def test_a_source_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SEARCH_PATH, str(tmp_path))
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "own_broken.py").write_text("def (")
    (tmp_path / "own_user.py").write_text("def f(x):\n    import own_broken\n")
    with pytest.raises(
        ConfigError, match=r"own_broken\.py, which a function needs, cannot be read: SyntaxError"
    ):
        function_digest("own_user.f")


def test_the_digest_of_an_installed_function_is_of_its_name_and_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (
        function_digest("operator.add") == function_digest("operator.add") != function_digest("operator.sub")
    )
    before = function_digest("polars.concat_str")
    monkeypatch.setattr("mlops_ray.expressions._version", lambda package: "99")
    assert function_digest("polars.concat_str") != before
