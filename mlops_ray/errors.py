"""What can go wrong, in sentences.

One base class: each error knows the HTTP status it answers a request with and the exit status it ends a
command with, and its message says what happened, where, and what to do. Whatever is not a `MlopsError` is a
defect of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable, Sequence

WRONG_USE = 2
FAILED = 1


class MlopsError(Exception):
    """Base of all errors that a user can mend; `str(error)` is the sentence to show."""

    status = 500
    exit_status = FAILED


class UsageError(MlopsError):
    """A command was called wrongly."""

    status = 400
    exit_status = WRONG_USE


class ConfigError(MlopsError):
    """The project file says something that cannot be done, `at` a path of its keys.

    >>> str(ConfigError("unknown key 'path'", file="p.yaml", line=3, at=("sources", "a")))
    "p.yaml:3: sources.a: unknown key 'path'"
    """

    exit_status = WRONG_USE

    def __init__(
        self, message: str, *, file: str | None = None, line: int | None = None, at: Sequence[object] = ()
    ) -> None:
        self.message, self.at = message, tuple(at)
        place = [":".join(str(part) for part in (file, line) if part is not None)] if file else []
        place += [".".join(str(key) for key in at)] if at else []
        super().__init__(": ".join([*place, message]))


class DataError(MlopsError):
    """Data cannot be read or does not mean what the project file says; `said` is what may quote it.

    `then` is how the sentence goes on behind that.

    >>> error = DataError("not a number", file="a.csv", row=7, column="load", said=": 'x'")
    >>> str(error), str(error.without_data())
    ("a.csv, row 7, column 'load': not a number: 'x'", "a.csv, row 7, column 'load': not a number")
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        row: int | None = None,
        column: str | None = None,
        said: str = "",
        then: str = "",
    ) -> None:
        self.parts = {"message": _placed(message, file, row, column), "said": said, "then": then}
        super().__init__("".join(self.parts.values()))

    def without_data(self) -> "DataError":
        """The error for people who may not see what it quotes."""
        return DataError(self.parts["message"] + self.parts["then"])


class PolicyError(MlopsError):
    """A source's policy forbids it."""


class StorageError(MlopsError):
    """The place where state lives cannot be read or written."""


class TrainingError(MlopsError):
    """A model could not be trained, or is not good enough to go on."""


class ReleaseError(MlopsError):
    """A version that was pushed does not go live, and why."""


class PackageError(MlopsError):
    """A model's package is damaged, foreign, or of another version."""


class ClusterError(MlopsError):
    """Ray could not be started, reached or stopped."""


class JobError(MlopsError):
    """A command that ran as a job did not end well; what was waiting for it ends with its exit status."""

    def __init__(self, message: str, exit_status: int) -> None:
        self.exit_status = exit_status
        super().__init__(message)


class ServiceError(MlopsError):
    """The service does not answer, or not in time."""

    status = 503


class RequestError(MlopsError):
    """A caller's request cannot be answered as it stands; subclasses fix the status."""

    status = 400


class UnauthorizedError(RequestError):
    """No key, or one that is not known."""

    status = 401


class ForbiddenError(RequestError):
    """The key is known, but its role does not allow this."""

    status = 403


class NotFoundError(RequestError):
    """No such model, version or path."""

    status = 404


class MethodNotAllowedError(RequestError):
    """The path exists, but not for this method; `allowed` are those for which it does."""

    status = 405

    def __init__(self, message: str, *, allowed: Sequence[str] = ()) -> None:
        self.allowed = tuple(allowed)
        super().__init__(message)


class SlowBodyError(RequestError):
    """The body did not come in time."""

    status = 408


class TooLargeError(RequestError):
    """The body, or the number of rows, is over the limit."""

    status = 413


class UnsupportedMediaTypeError(RequestError):
    """The body's content type is none that we read."""

    status = 415


class InvalidRowError(RequestError):
    """A value of a request is wrong.

    >>> str(InvalidRowError("'x' is not a number", row=0, column="load"))
    "row 0, column 'load': 'x' is not a number"
    """

    status = 422

    def __init__(self, message: str, *, row: int | None = None, column: str | None = None) -> None:
        self.row, self.column = row, column
        super().__init__(_placed(message, None, row, column))


class OverloadedError(RequestError):
    """There is no time for the request now; `retry_after_s` says when there may be."""

    status = 429

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        self.retry_after_s = max(retry_after_s, 1)
        super().__init__(message)


class CallerGoneError(RequestError):
    """Nobody is there any more to be answered; the status stands in our own counts alone."""

    status = 499


class DeadlineError(RequestError):
    """The caller's time was over before there was an answer."""

    status = 504


def request_error(status: int, said: str) -> RequestError:
    """The error that a service answered with, by its status.

    >>> type(request_error(422, "row 0: …")).__name__, type(request_error(418, "…")).__name__
    ('InvalidRowError', 'RequestError')
    """
    return next((kind for kind in RequestError.__subclasses__() if kind.status == status), RequestError)(said)


def _placed(message: str, file: str | None, row: int | None, column: str | None) -> str:
    place = [file] if file else []
    place += [f"row {row}"] if row is not None else []
    place += [f"column {column!r}"] if column else []
    return f"{', '.join(place)}: {message}" if place else message


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that ends a sentence: the nearest known word, else all of them.

    >>> did_you_mean("delimeter", ["delimiter", "quote"])
    "; did you mean 'delimiter'?"
    >>> did_you_mean("zzz", ["delimiter", "quote"])
    '; known here: delimiter, quote'
    """
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known here: {', '.join(names)}" if names else ""


def one_line(error: BaseException) -> str:
    """What an error of somebody else's says, without its line breaks.

    >>> one_line(ValueError("no such\\n  column"))
    'no such column'
    """
    return " ".join(str(error).split())


class Said(str):
    """A sentence, and the name of the error's `type`, by which the error log has it."""

    type: str


def safe(error: BaseException) -> Said:
    """What a log may say of an error: our sentence, without data; of others, which may quote rows, the type.

    >>> safe(DataError("not a number", said=": 'x'"))
    'not a number'
    >>> safe(ValueError("could not convert 'x'")), safe(OSError(28, "No space left on device"))
    ('ValueError', 'OSError: No space left on device')
    """
    told = name = type(error).__name__
    if isinstance(error, MlopsError):
        told = one_line(error.without_data() if isinstance(error, DataError) else error)
    elif isinstance(error, OSError) and error.strerror:
        told = f"{name}: {error.strerror}"
    said = Said(told)
    said.type = name
    return said


class Once:
    """What was said of what is wrong, by what it is about: the same is no news until it was over.

    >>> wrong = Once()
    >>> [wrong.is_news("m", "away"), wrong.is_news("m", "away"), wrong.is_news("m", "full")]
    [True, False, True]
    >>> wrong.over("m")
    >>> wrong.is_news("m", "full")
    True
    """

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def is_news(self, about: str, said: str) -> bool:
        before, self._said[about] = self._said.get(about), said
        return before != said

    def over(self, about: str) -> None:
        self._said.pop(about, None)


def first_line(error: BaseException) -> str:
    """The first line of what it says: what Polars says behind it is advice about its own options."""
    return " ".join(str(error).split("\n")[0].split())[:200]
