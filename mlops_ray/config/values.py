"""What stands behind every section of the project file: its base class, and values such as durations."""

import re
import zoneinfo
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from mlops_ray.errors import ConfigError, did_you_mean
from mlops_ray.expressions import compile_sql

MICROSECONDS = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
}
#: So that no time minus a duration leaves the calendar.
LONGEST = 36_525 * MICROSECONDS["d"]
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d|w)")


class Model(BaseModel):
    """Frozen, and an unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    #: Of these keys one is said, and no second.
    exactly_one: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and cls.model_config.get("extra") == "forbid":
            known = {field.alias or name for name, field in cls.model_fields.items()}
            for key in data:
                if key not in known:
                    hint = did_you_mean(str(key), known)
                    raise wrong(f"unknown key {str(key)!r}{hint}", key=(str(key),))
        return data

    @model_validator(mode="after")
    def _one(self) -> Self:
        fields = {name: type(self).model_fields[name] for name in self.exactly_one}
        given = [
            field.alias or name for name, field in fields.items() if getattr(self, name) != field.default
        ]
        if fields and len(given) != 1:
            names = ", ".join(field.alias or name for name, field in fields.items())
            raise ValueError(f"say exactly one of {names}" + f", not {' and '.join(given)}" * bool(given))
        return self


def wrong(message: str, *at: object, key: tuple[str, ...] = ()) -> PydanticCustomError:
    """An error of a place below the model that finds it, in the line of a key there, which it quotes."""
    return PydanticCustomError("wrong", "{message}", {"message": message, "at": at, "key": key})


def require_known(does: str, names: Iterable[str], known: Collection[str], what: str, *at: object) -> None:
    """Raises where a name is not known, e.g. that it `reads` 'x', which is `no column`."""
    for name in sorted(set(names).difference(known)):
        raise wrong(f"{does} {name!r}, which is {what}{did_you_mean(name, known)}", *at)


def parse_duration(text: str) -> int:
    """A duration in microseconds; a day is 24 hours.

    >>> parse_duration("1h"), parse_duration("7d") // 1_000_000
    (3600000000, 604800)
    """
    match = _DURATION.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write e.g. 15m, 24h, 7d")
    micros = round(float(match[1]) * MICROSECONDS[match[2]])
    if micros > LONGEST:
        raise ValueError(f"{text!r} is longer than a century")
    return micros


def duration_in_words(micros: int) -> str:
    """A duration as a project file says it.

    >>> duration_in_words(7 * MICROSECONDS["d"]), duration_in_words(90 * MICROSECONDS["m"])
    ('7d', '90m')
    """
    unit = next(unit for unit in ("d", "h", "m", "s", "ms", "us") if micros % MICROSECONDS[unit] == 0)
    return f"{micros // MICROSECONDS[unit]}{unit}"


def _some_time(micros: int) -> int:
    if micros == 0:
        raise ValueError("must be longer than nothing")
    return micros


def _rate(text: str) -> str:
    if parse_duration(text.partition("/")[2]) == 0:
        raise ValueError(f"{text!r} is in no time at all: say in how long, e.g. 1/7d")
    return text


def _parse_share(value: object) -> float:
    if isinstance(value, str) and value.strip().endswith("%"):
        return float(value.strip()[:-1]) / 100
    if isinstance(value, int | float):
        return float(value)
    raise ValueError(f"{value!r} is not a share; write e.g. 2% or 0.02")


def checked_sql(text: str) -> str:
    """The text itself; raises `ValueError` where it is no expression that rows can be asked."""
    try:
        compile_sql(text)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return text


def _timezone(name: str) -> str:
    if name not in zoneinfo.available_timezones():
        raise ValueError(f"no time zone {name!r}{did_you_mean(name, zoneinfo.available_timezones())}")
    return name


def _country(name: str) -> str:
    import holidays

    if name not in holidays.list_supported_countries():
        raise ValueError(f"no holidays of {name!r} are known; write the country as ISO 3166 does, e.g. DE")
    return name


def _url(address: str) -> str:
    """What it shows of itself may be a secret."""
    if not address.startswith(("http://", "https://")):
        raise ValueError("an address begins with http:// or https://")
    return address


def as_list(value: object) -> object:
    """A list, which a file may write as its only item."""
    return [value] if isinstance(value, str | dict) else value


Duration = Annotated[int, BeforeValidator(parse_duration, json_schema_input_type=str)]
#: A duration that is not nothing.
Step = Annotated[Duration, AfterValidator(_some_time)]
Share = Annotated[float, BeforeValidator(_parse_share, json_schema_input_type=float | str)]
#: Not a pattern: an editor that checks a file sees `${VAR}` in its place.
Url = Annotated[str, AfterValidator(_url)]
Sql = Annotated[str, AfterValidator(checked_sql)]
Names = Annotated[tuple[str, ...], BeforeValidator(as_list, json_schema_input_type=str | list[str])]
#: At most so many in so long, e.g. `1/7d`.
Rate = Annotated[str, Field(pattern=r"^\d+/\d+(\.\d+)?(s|m|h|d|w)$"), AfterValidator(_rate)]
Timezone = Annotated[str, AfterValidator(_timezone)]
#: ISO 3166, e.g. DE.
Country = Annotated[str, AfterValidator(_country)]
#: Files and folders are called after sources.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
Aggregation = Literal[
    "count", "sum", "mean", "min", "max", "std", "first", "last", "distinct_count", "quantile"
]


class Function(Model):
    """A Python function from columns to a column, by its dotted path."""

    path: str
    """E.g. package.module.name."""
    inputs: Names
    """The columns that it gets."""


def columns_of(how: str | Function) -> frozenset[str]:
    """The columns that a value is computed from."""
    return frozenset(compile_sql(how).columns if isinstance(how, str) else how.inputs)
