"""SQL expressions over columns, compiled once and run by Polars.

The same compiled expression runs over a partition of a million rows and over a request of three; nothing is
`eval`ed. What SQL cannot say is a Python function from columns to a column, named by its dotted path.
"""

import ast
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mlops_ray.errors import ConfigError, DataError, did_you_mean, one_line

#: The environment variable with the folder of the project file, in which its functions may stand.
SEARCH_PATH = "MLOPS_RAY_SEARCH_PATH"
#: How long an expression may be, and how much may nest in it: Polars walks it by recursion. In a thread with
#: 512 KiB of stack (the usual is 8 MiB), 250 operations in one another end the process, and so do 125 CASTs;
#: an operation takes two names or signs, or more.
MAX_LENGTH = 10_000
MAX_SIGNS = 400
MAX_DEPTH = 30
#: A piece of SQL text. What is not here (comments, `::`, `$$`, `[]`, `.`, literals like E'..') cannot
#: stand in an expression: by each of these, Polars may read a text otherwise than it is read here.
PIECE = re.compile(
    r"""(?P<space>\s+)
    | (?P<literal>'[^']*(?:''[^']*)*')
    | (?P<quoted>"[^"]*(?:""[^"]*)*")
    | (?P<number>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<word>[^\W\d]\w*+(?!['"]))
    | (?P<sign>\|\||-(?!-)|/(?![*/])|[+*%=<>!~(),])""",
    re.VERBOSE,
)
#: Functions of Polars' SQL that read their own row alone, and are no danger to the batch: a value decides how
#: much memory LPAD takes, and DIV, like `//`, fails where one row divides by 0.
FUNCTIONS = frozenset({
    "ABS", "ACOS", "ACOSD", "ASIN", "ASIND", "ATAN", "ATAN2", "ATAN2D", "ATAND", "CBRT", "CEIL", "CEILING",
    "COS", "COSD", "COT", "COTD", "DEGREES", "ERF", "EXP", "FLOOR", "LN", "LOG", "LOG10", "LOG1P",
    "LOG2", "MOD", "PI", "POW", "POWER", "RADIANS", "ROUND", "SIGN", "SIN", "SIND", "SQRT", "TAN", "TAND",
    "TRUNC", "TRUNCATE", "CAST", "SAFE_CAST", "TRY_CAST", "COALESCE", "GREATEST", "IF", "IFNULL", "LEAST",
    "NULLIF", "DATE", "DATE_PART", "DATETIME", "DAY", "DAYOFMONTH", "DAYOFWEEK", "DAYOFYEAR", "EXTRACT",
    "HOUR", "MINUTE", "MONTH", "QUARTER", "SECOND", "STRFTIME", "STRPTIME", "TIME", "TIMESTAMP", "WEEK",
    "YEAR", "BIT_LENGTH", "CHARACTER_LENGTH", "CHAR_LENGTH", "CONCAT", "CONCAT_WS", "ENDS_WITH", "INITCAP",
    "LEFT", "LENGTH", "LOWER", "LTRIM", "NORMALIZE", "OCTET_LENGTH", "POSITION", "REGEXP_LIKE",
    "REGEXP_REPLACE", "REPLACE", "REVERSE", "RIGHT", "RTRIM", "SPLIT_PART", "STARTS_WITH", "STRPOS",
    "SUBSTR", "SUBSTRING", "TRIM", "UPPER",
})  # fmt: skip
#: Other words that a parenthesis may follow: operators, and types with a size.
BEFORE_PARENTHESIS = frozenset({
    "AND", "OR", "XOR", "NOT", "IN", "BETWEEN", "LIKE", "ILIKE", "RLIKE", "REGEXP", "CASE", "WHEN", "THEN",
    "ELSE", "FROM", "FOR", "CHAR", "DECIMAL", "FLOAT", "NUMERIC", "VARCHAR",
})  # fmt: skip
#: Words that begin a query or a window: a query reads files and the network, already while it is compiled.
QUERY = frozenset({"SELECT", "WITH", "TABLE", "VALUES", "UNION", "OVER"})
#: Functions whose arguments may be written with FROM, and those with AS.
WITH_FROM = frozenset({"EXTRACT", "SUBSTRING", "TRIM"})
WITH_AS = frozenset({"CAST", "SAFE_CAST", "TRY_CAST"})
#: Words and functions that mean another value each time they are read.
CLOCK = frozenset({"CURRENT_DATE", "CURRENT_TIME", "CURRENT_TIMESTAMP", "LOCALTIME", "LOCALTIMESTAMP"})
CLOCK_FUNCTIONS = frozenset({"NOW", "RANDOM"})


@dataclass(frozen=True)
class Expression:
    """A SQL expression over columns: its text, the columns it reads, and how Polars computes it."""

    text: str
    columns: frozenset[str]
    polars: pl.Expr


def compile_sql(text: str) -> Expression:
    """The compiled form of a SQL expression; all SQL of a project is compiled here.

    Raises `ConfigError` where the text is not one expression that Polars knows, or where it reads anything
    but its own row: a batch of n would then not equal n batches of one. A value that cannot be cast, or is
    no date of the format given, is null.

    >>> expression = compile_sql("load < 1.4 OR site = 'BL-H'")
    >>> sorted(expression.columns)
    ['load', 'site']
    >>> pl.DataFrame({"load": [2.0, 2.0], "site": ["BL-H", "G0"]}).select(x=expression.polars)["x"].to_list()
    [True, False]
    """
    _refuse(text)
    try:
        compiled = pl.sql_expr(_tolerant(text))
        columns = frozenset(compiled.meta.root_names())
        is_plain = compiled.meta.eq(compiled.meta.undo_aliases()) and not compiled.meta.has_multiple_outputs()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise ConfigError(f"not a SQL expression: {text!r} ({error})") from error
    if not is_plain:
        raise ConfigError(
            f"{text!r} is not one value: it has a name at its end, or a pattern of column names"
        )
    if not columns:
        raise ConfigError(f"{text!r} reads no column")
    return Expression(text, columns, _with_dates(text, compiled))


def column_sql(name: str) -> str:
    """A column as SQL, whatever stands in its name.

    >>> print(column_sql("net weight"))
    "net weight"
    """
    return '"' + name.replace('"', '""') + '"'


def _refuse(text: str) -> None:
    """Raises `ConfigError` where a text could be more than an expression over one row.

    It looks at the words alone, before Polars parses them, because compiling a query already reads files.
    """
    if len(text) > MAX_LENGTH:
        raise ConfigError(f"{text[:50]!r}... is of {len(text):,} characters; the most are {MAX_LENGTH:,}")
    pieces = list(_pieces(text))
    if sum(kind != "literal" and piece != "," for kind, piece in pieces) > MAX_SIGNS:
        raise ConfigError(f"{text[:50]!r}... has more than {MAX_SIGNS} names and signs: derive columns first")
    calls: list[str] = []
    before = ""
    for kind, piece in pieces:
        word = piece.upper() if kind == "word" else piece
        if why := _fault(word, before, calls):
            raise ConfigError(f"{text!r}{why}")
        if word == "(":
            calls.append(before)
        elif word == ")" and calls:
            calls.pop()
        before = word


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """The kind and the text of each piece but space."""
    at = 0
    while at < len(text):
        match = PIECE.match(text, at)
        if match is None:
            raise ConfigError(
                f"{text!r}: what begins with {text[at : at + 20]!r} cannot stand in an expression; "
                "write a cast as CAST(x AS type), a whole quotient as TRUNC(x / y), and a column of another "
                'name as "name"'
            )
        if match.lastgroup != "space":
            yield str(match.lastgroup), match[0]
        at = match.end()


def _fault(word: str, before: str, calls: list[str]) -> str:
    """What is wrong with a word after another, within the calls that are open; empty where nothing is."""
    if word in CLOCK or (word == "(" and before in CLOCK_FUNCTIONS):
        return " is another value each time that it is computed"
    is_call = word == "(" and before not in BEFORE_PARENTHESIS and re.search(r'[\w"]$', before)
    if is_call and before not in FUNCTIONS:
        return (
            f": {before} is no function that an expression may call, or it reads other rows than its own as "
            f"aggregates, windows and queries do{did_you_mean(before, FUNCTIONS)}"
        )
    if word == "(" and len(calls) == MAX_DEPTH:
        return f" has more than {MAX_DEPTH} parentheses in one another: derive columns first"
    call = calls[-1] if calls else ""
    is_from = word == "FROM" and before != "DISTINCT" and call not in WITH_FROM
    if word in QUERY or is_from or (word == "AS" and call not in WITH_AS):
        return (
            f": {word} cannot stand here, since an expression reads the columns of its own row alone; "
            f'a column of that name is written as "{word}"'
        )
    return ""


def _tolerant(text: str) -> str:
    """The text with TRY_CAST for CAST, which makes null of what it cannot cast instead of failing."""
    return PIECE.sub(
        lambda piece: (
            "TRY_CAST"
            if re.fullmatch("CAST", piece["word"] or "", re.IGNORECASE)
            and text[piece.end() :].lstrip().startswith("(")
            else piece[0]
        ),
        text,
    )


def _with_dates(text: str, compiled: pl.Expr) -> pl.Expr:
    """The expression with null for text that is no date of its format.

    Polars' SQL has no word for that, so it is said in the expression's JSON, in which the quotation
    marks of a literal are escaped: it cannot look like what is replaced.
    """
    tree = compiled.meta.serialize(format="json")
    if '"Strptime":' not in tree:
        return compiled
    if '"format":null' in tree:
        # Without one, Polars takes the format of the first row for all of them.
        raise ConfigError(f"{text!r} reads other rows than its own: give the format, DATE(x, '%Y-%m-%d')")
    try:
        return pl.Expr.deserialize(tree.replace('"strict":true', '"strict":false').encode(), format="json")
    except pl.exceptions.ComputeError as error:
        raise ConfigError(
            f"{text!r} nests too deeply around a date: derive the date as a column first"
        ) from error


def load_function(path: str) -> Callable[..., pl.Series]:
    """The Python function at a dotted path, which takes columns and returns a column of their length.

    Raises `ConfigError` where there is none. Called, it raises `DataError` with its name for whatever goes
    wrong in it, and for a result that is no such column.

    >>> load_function("operator.add")(pl.Series([1, 2]), pl.Series([3, 4])).to_list()
    [4, 6]
    >>> load_function("operator.ad")
    Traceback (most recent call last):
    mlops_ray.errors.ConfigError: the module 'operator' has no function 'ad'; did you mean 'add'?
    """
    module_name, _, name = path.rpartition(".")
    folder = os.environ.get(SEARCH_PATH)
    if folder is not None and folder not in sys.path:
        # Last: what lies beside a project file must not take the place of a library.
        sys.path.append(folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # The module is the user's: importing it may raise anything.
        raise ConfigError(f"the module of {path!r} cannot be imported: {_with_type(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        hint = did_you_mean(name, [known for known, value in vars(module).items() if callable(value)])
        raise ConfigError(f"the module {module_name!r} has no function {name!r}{hint}")
    return functools.partial(_call, path, function)


def function_digest(path: str) -> str:
    """SHA-256 of the code behind the function at a dotted path.

    That is the source of its module, and of those that it imports, directly or not, from the same folder tree
    or from beside the project file. Of an installed function it is path and version. What is imported by a
    name made at run time is not seen. Raises `ConfigError` where there is no such function, or a source
    cannot be read.
    """
    load_function(path)
    name = path.rpartition(".")[0]
    file = Path(getattr(sys.modules[name], "__file__", None) or "")
    if file.suffix != ".py" or _is_installed(file):
        return hashlib.sha256(f"{path} {_version(name.partition('.')[0])}".encode()).hexdigest()
    levels = name.count(".") + (file.name == "__init__.py")
    folders = [file.parents[levels], Path(os.environ.get(SEARCH_PATH, file.parents[levels]))]
    sources = _sources(name, folders) or {name: file.read_bytes()}
    return hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()


def _is_installed(file: Path) -> bool:
    library = Path(sysconfig.get_path("stdlib"))
    return not {"site-packages", "dist-packages"}.isdisjoint(file.parts) or file.is_relative_to(library)


@functools.cache
def _version(package: str) -> str:
    """The versions of the distributions with a top-level package; empty for the standard library."""
    if package in sys.stdlib_module_names:
        return ""
    distributions = importlib.metadata.packages_distributions().get(package, [])
    return " ".join(sorted({importlib.metadata.version(name) for name in distributions}))


def _sources(name: str, folders: Iterable[Path]) -> dict[str, bytes]:
    """The source of a module, and of those that it imports, as far as they lie in these folders."""
    found: dict[str, bytes] = {}
    open = [name]
    while open:
        name = open.pop()
        stem = name.replace(".", "/")
        places = [folder / end for folder in folders for end in (f"{stem}/__init__.py", f"{stem}.py")]
        file = next((place for place in places if place.is_file()), None)
        if file is None or name in found:
            continue
        found[name] = file.read_bytes()
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        try:
            open += _imported(ast.parse(found[name]), package)
        except (SyntaxError, ValueError, ImportError) as error:
            raise ConfigError(
                f"{file}, which a function needs, cannot be read: {_with_type(error)}"
            ) from error
        open += [package] if package else []
    return found


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    """The names that may be modules among what the source of a module of this package imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            module = importlib.util.resolve_name(relative, package)
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            # Importing a.b.c runs a and a.b first.
            parts = name.split(".")
            yield from (".".join(parts[: length + 1]) for length in range(len(parts)))


def _call(path: str, function: Callable[..., object], *columns: pl.Series) -> pl.Series:
    try:
        result = function(*columns)
    except Exception as error:
        # The function is the user's: whatever it raises is a fault of the project, told by its name.
        said = f": {one_line(error)}"
        raise DataError(f"the function {path} failed: {type(error).__name__}", said=said) from error
    if not isinstance(result, pl.Series):
        raise DataError(f"the function {path} returned a {type(result).__name__}, not a polars Series")
    if columns and len(result) != len(columns[0]):
        raise DataError(f"the function {path} returned {len(result)} values for {len(columns[0])} rows")
    return result


def _with_type(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
