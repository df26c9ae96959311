"""The project file as plain data, before anything is asked of it: YAML, its variables filled in.

Every place in it is remembered with its file and line, for whoever finds a mistake there.
"""

import contextlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mlops_ray.config.values import as_list
from mlops_ray.errors import ConfigError, one_line

#: What a project file may hold, aliases written out.
MOST_NODES, DEEPEST = 100_000, 50
#: What projects may share in files of their own, which they include.
SHARED = ("sources", "features")
_VARIABLE = re.compile(r"\$\{(\w+)\}")

#: The keys, and positions in lists, that lead to a value.
Place = tuple[Any, ...]


@dataclass(frozen=True)
class Origin:
    """The project's file, and where each place is written: in which file, and in which line of it."""

    file: str | None
    lines: Mapping[Place, tuple[str, int]]

    def error(self, message: str, at: Place = (), key: Place = ()) -> ConfigError:
        """The error with the line of its place, or of the nearest thing around it that is written."""
        place = (*at, *key)
        around = (place[:length] for length in range(len(place), 0, -1))
        file, line = next((self.lines[place] for place in around if place in self.lines), (self.file, None))
        return ConfigError(message, file=file, line=line, at=at)

    def first_error(self, error: ValidationError) -> ConfigError:
        """The one of several mistakes that says most, in a sentence."""
        # A mistake inside one branch of a union is reported for every branch: the deepest place says most.
        detail = max(error.errors(), key=lambda d: (d["type"] == "wrong", len(self._place(d["loc"]))))
        match detail["type"]:
            case "missing":
                message = f"the key {str(detail['loc'][-1])!r} is missing"
            case "model_type":
                # What stands there instead may be secret: an address that was meant for one of its keys.
                message = "a mapping is needed, e.g. {key: value}"
            case _:
                message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
                message = message.replace("a valid tuple", "a list")
        context = detail.get("ctx", {})
        at = (*self._place(detail["loc"]), *context.get("at", ()))
        return self.error(message, at, context.get("key", ()))

    def _place(self, loc: Place) -> Place:
        """The part of an error's location that is written (pydantic adds the names of union members)."""
        place: Place = ()
        for part in loc:
            if (*place, part) in self.lines:
                place = (*place, part)
        return place


def read(file: Path, environ: Mapping[str, str]) -> tuple[dict[str, Any], Origin]:
    """What a file and those that it includes say, paths absolute, and where it is written."""
    tree, lines = parse(file)
    origin = Origin(str(file), lines)
    tree = _filled_in({"storage": ".mlops"} | tree, file, environ, origin)
    includes = as_list(tree.get("include") or [])
    if not isinstance(includes, list):
        raise origin.error("a path, or a list of them, is needed", ("include",))
    for included in includes:
        other = file.parent / str(included)
        others, other_lines = parse(other)
        theirs = Origin(str(other), other_lines)
        for part in SHARED:
            own, shared = tree.get(part) or {}, others.get(part) or {}
            if not isinstance(own, dict) or not isinstance(shared, dict):
                where = theirs if isinstance(own, dict) else origin
                raise where.error("a mapping is needed, e.g. {key: value}", (part,))
            tree[part] = _filled_in({part: shared}, other, environ, theirs)[part] | own
        # A name that stands in both files is told by the line in this one.
        added = {place for place in other_lines if place[0] in SHARED and place[:2] not in lines}
        lines |= {place: other_lines[place] for place in added}
    return tree, origin


def parse(
    file: Path, what: str = "project file", begins: str = "project: NAME"
) -> tuple[dict[str, Any], dict[Place, tuple[str, int]]]:
    """The YAML of a file, and the file and line of each place in it; `what` it is, and how one begins."""
    name = str(file)
    try:
        loader = yaml.SafeLoader(file.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        _refuse(node, name)
        # Puts what `<<` merges into the nodes too, which then tell the line where it was written.
        tree = loader.construct_document(node) if node else None
    except OSError as error:
        raise ConfigError(f"cannot read the {what} {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text (byte {error.start})", file=name) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise ConfigError(f"not YAML: {error.problem}", file=name, line=line) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"not YAML: {one_line(error)}", file=name) from error
    if not isinstance(tree, dict):
        raise ConfigError(f"a {what} is a mapping that begins with {begins}", file=name)
    return tree, {place: (name, line) for place, line in _lines(node)}


def _refuse(node: yaml.Node | None, file: str) -> None:
    """Raises `ConfigError` for a key twice in a mapping, and for what grows without end by naming itself."""
    places = set()
    for count, (place, line) in enumerate(_lines(node)):
        if count > MOST_NODES or len(place) > DEEPEST:
            raise ConfigError("too large, or an alias (*NAME) stands within what it names", file=file)
        if isinstance(place[-1], list):
            raise ConfigError("a key is a word", file=file, line=line)
        if place in places and place[-1] != "<<":
            raise ConfigError(f"the key {place[-1]!r} stands here twice", file=file, line=line)
        places.add(place)


def _lines(node: yaml.Node | None, at: Place = ()) -> Iterator[tuple[Place, int]]:
    """The line of every key and item."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*at, key.value), key.start_mark.line + 1
            yield from _lines(value, (*at, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*at, index), value.start_mark.line + 1
            yield from _lines(value, (*at, index))


def _filled_in(
    tree: dict[str, Any], file: Path, environ: Mapping[str, str], origin: Origin
) -> dict[str, Any]:
    """The tree with every `${VAR}` replaced and every path absolute; an alert that is off is left out."""
    base = file.parent.resolve()

    def walk(value: Any, at: Place) -> Any:
        if isinstance(value, dict):
            return {key: walk(child, (*at, key)) for key, child in value.items()}
        if isinstance(value, list):
            is_alerts = at == ("monitoring", "alerts")
            kept = [(i, child) for i, child in enumerate(value) if not (is_alerts and unset(child, environ))]
            return [walk(child, (*at, i)) for i, child in kept]
        if not isinstance(value, str):
            return value
        for name in unset(value, environ):
            raise origin.error(f"the environment variable {name} is not set", at)
        text = _VARIABLE.sub(lambda match: environ[match[1]], value)
        return resolve(text, base) if _is_path(at) else text

    return walk(tree, ())  # type: ignore[no-any-return]


#: Where else a path stands, relative to the project file.
PATHS = (
    ("storage",),
    ("cost", "prices"),
    ("cost", "load", "recorded"),
    ("signing", "key"),
    ("audit", "heads"),
    ("serving", "listen", "certificate"),
    ("serving", "listen", "key"),
)


def _is_path(at: Place) -> bool:
    # That of a source may stand in a list, and among options.
    keys = tuple(key for key in at if not isinstance(key, int))
    of_source = keys[:1] == ("sources",) and keys[2:] in (("path",), ("path", "path"))
    return of_source or keys in PATHS


def unset(value: object, environ: Mapping[str, str]) -> list[str]:
    """The variables that a value needs and the environment lacks."""
    if isinstance(value, str):
        return [name for name in _VARIABLE.findall(value) if name not in environ]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [name for child in children for name in unset(child, environ)]


def variables(file: Path) -> list[str]:
    """The environment variables that a file, and those that it includes, ask for by `${VAR}`."""
    return sorted({name for _, tree in _with_included(file) for name in unset(tree, {})})


def _with_included(file: Path) -> list[tuple[Path, dict[str, Any]]]:
    """A file and those that it includes, and what stands in each, as it stands there."""
    tree, _ = parse(file)
    included: Any = as_list(tree.get("include") or [])
    others = [file.parent / str(other) for other in included]
    return [(file, tree), *((other, parse(other)[0]) for other in others)]


def at_rest(file: Path, environ: Mapping[str, str]) -> tuple[str, list[str]]:
    """The storage of a project file, and the addresses at which it reads rows that are bound to regions.

    Nothing else in the file need be right; what asks for variables that are not set is left as it stands.
    """
    files = _with_included(file)
    bound: list[str] = []
    for each, tree in files:
        for source in map(_mapping, _mapping(tree.get("sources")).values()):
            if _mapping(source.get("policy")).get("allowed_regions") is not None:
                bound += _addresses(source, each.parent.resolve(), environ)
    storage = _filled(files[0][1].get("storage", ".mlops"), environ)
    return resolve(storage, file.parent.resolve()), bound


def _addresses(source: Mapping[str, Any], base: Path, environ: Mapping[str, str]) -> Iterator[str]:
    items: Any = as_list(source.get("path") or [source])
    for item in items:
        path = item if isinstance(item, str) else _mapping(item).get("path")
        if path is None:
            yield _filled(_mapping(_mapping(item).get("sql")).get("connection"), environ)
            continue
        # What a package holds that is not installed here is nothing of here.
        with contextlib.suppress(ConfigError):
            yield resolve(_filled(path, environ), base)


def local_path(address: str, base: Path) -> Path | None:
    """The file of this machine at an address, or the pattern of files; `None` for what is elsewhere.

    >>> [str(local_path(at, Path("/p"))) for at in ("rows-*.csv", "sqlite:///a.db", "s3://b/a.csv")]
    ['/p/rows-*.csv', '/p/a.db', 'None']
    """
    path = address.removeprefix("sqlite:///")
    return None if "://" in path else base / path


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _filled(text: object, environ: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: environ.get(match[1], match[0]), str(text))


def resolve(path: str, base: Path) -> str:
    """An absolute path or URL; `package://NAME/…` is a file of `mlops_ray.datasets`, else of a package.

    >>> resolve("data/a.csv", Path("/project"))
    '/project/data/a.csv'
    >>> resolve("s3://bucket/a.csv", Path("/project"))
    's3://bucket/a.csv'
    """
    if path.startswith("package://"):
        name, _, rest = path.removeprefix("package://").partition("/")
        return str(_package(name, path) / rest)
    return path if "://" in path else str((base / path).absolute())


def _package(name: str, path: str) -> Path:
    """The folder of a data set or of a package, which is not imported: that may take seconds."""
    own = Path(__file__).parents[1] / "datasets" / name
    if own.is_dir():
        return own
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise ConfigError(
            f"no data set and no installed package is called {name!r} ({path}); install it first"
        )
    return Path(folders[0])
