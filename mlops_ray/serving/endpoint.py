"""The HTTP interface of one model, below /v2/models/NAME: who may call, and what is answered."""

import asyncio
import time
from collections.abc import Awaitable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from mlops_ray.data import labels
from mlops_ray.data.error_log import DEFECTS
from mlops_ray.data.prediction_log import CHALLENGER, CHAMPION
from mlops_ray.data.rows import Rows
from mlops_ray.errors import (
    DataError,
    DeadlineError,
    InvalidRowError,
    NotFoundError,
    OverloadedError,
    RequestError,
    SlowBodyError,
    TooLargeError,
    UnsupportedMediaTypeError,
)
from mlops_ray.keys import Caller, Keyring, Role
from mlops_ray.monitoring.sides import bucket
from mlops_ray.registry.explain import Contributions
from mlops_ray.registry.models import Values
from mlops_ray.serving import protocol, truth
from mlops_ray.serving.admission import PATIENCE, TIMEOUT, Admission, Place, Rates, deadline
from mlops_ray.serving.asgi import Application, Call, Reply, error_reply, json_reply
from mlops_ray.serving.autoscaling import Load
from mlops_ray.serving.batcher import Part
from mlops_ray.serving.bulkhead import Bulkhead
from mlops_ray.serving.contest import BROKEN, LATE, REFUSED, UNABLE, Contest, Copy, Tried
from mlops_ray.serving.refusals import invalid, refuse_rejected
from mlops_ray.serving.versions import Live, Versions
from mlops_ray.storage import Storage

PREFIX = "/v2/models"
#: Requests of one key are answered by one version; an admin may ask for a version.
ROUTING_KEY, VERSION = "x-routing-key", "x-model-version"
PLATFORM = "mlops_ray"
INFER, INVOCATIONS, LABELS, READY, METADATA = "/infer", "/invocations", "/labels", "/ready", ""
#: How long a body may take to come.
BODY_S = 10.0
#: Bodies that are read at once, in the loop.
SMALL_BYTES = 262_144
#: Bodies that may be on their way at a time, each of at most 16 MB.
MOST_BODIES = 64
#: Bytes of large bodies that may wait until they are read, and of labels.
MOST_UNREAD = 2**27
#: Rows whose contributions one request may ask for: of 300 trees they take about 4 ms each.
MOST_EXPLAINED = 256
#: Requests that may wait for their contributions.
MOST_WHYS = 8


class _Asked(NamedTuple):
    """When a request for a prediction came, until when it is waited for, and its place among the others.

    `caller` is the name of the key, `compared` is as `prediction_log.Entry` has it.
    """

    came_ns: int
    until: float | None
    place: Place
    caller: str
    compared: tuple[int, int] | None = None


class Endpoint(Application):
    """Answers the HTTP requests of a model. Without a deadline a caller waits `p99_ms` so many times."""

    def __init__(
        self,
        model: str,
        versions: Versions,
        keyring: Keyring,
        hidden: frozenset[str],
        storage: Storage,
        *,
        p99_ms: float = 50.0,
        explains: bool = False,
    ) -> None:
        self._model, self._versions, self._storage = model, versions, storage
        self._keyring, self._hidden, self._explains = keyring, hidden, explains
        self._prefix = f"{PREFIX}/{model}"
        self._patience_s = PATIENCE * p99_ms / 1000
        self.admission, self._load = Admission(self._patience_s), Load(p99_ms / 1000)
        self._rates, self._bodies = Rates(), 0
        # Each takes up to a second, for which others are not to wait.
        self._large = Bulkhead("large requests", MOST_UNREAD)
        self._labels = Bulkhead("labels", MOST_UNREAD)
        self._whys = Bulkhead("explanations", MOST_WHYS)

    def take(self, call: Call) -> Reply | Awaitable[Reply]:
        """What becomes the reply to one HTTP request; at once where its head says that it is refused.

        Those for a prediction are counted.
        """
        came_ns = time.perf_counter_ns()
        version, action = _split(call.path, self._prefix)
        if action not in (INFER, INVOCATIONS):
            return _replied(call, self._other(call, version, action))
        wanted = call.header(VERSION)
        named = wanted if version is None else version
        contest = self._versions.contest if named is None else None
        key = "" if contest is None else call.header(ROUTING_KEY) or call.id
        live = self._versions.find(named) if contest is None else contest.picks(key)
        try:
            # A version that is not live is for those alone who release it.
            is_reserved = wanted is not None or self._is_reserved(version)
            caller = self._authorize(call, "admin" if is_reserved else "predict")
            call.allow("POST")
            call.limit(protocol.MAX_BODY_BYTES)
            until = deadline(call.header(TIMEOUT), self.admission.clock())
            place = self._admitted(until, call.size)
        except Exception as error:  # noqa: BLE001 - whatever happens, the caller gets an answer
            return _counted(live, error_reply(error, call, _version(live)), came_ns)
        asked = _Asked(came_ns, until, place, caller.name)
        if contest is not None and live is not None:
            return self._contested(call, contest, live, key, action, asked)
        return self._predicted(call, live, action, asked)

    def told(self) -> dict[str, float]:
        """What the policy of autoscaling.py goes by: numbers, most of them counted since the start."""
        live, busy_s = self._versions.champion, self.admission.busy_s
        if live is None:
            return self._load.told(busy_s, 0, 0, None)
        batcher, cost = live.batcher, live.batcher.cost
        fixed_s = cost.fixed if cost.is_told_apart else None
        return self._load.told(busy_s, batcher.batches, batcher.rows, fixed_s)

    def _admitted(self, until: float | None, size: int) -> Place:
        self.admission.lag.watch()
        try:
            return self.admission.take(until, size)
        except OverloadedError:
            # Who waits for less than the objective is not owed an answer, and brings no replica.
            if until is None or until - self.admission.clock() >= self._load.late_s:
                self._load.refused += 1
                self._load.arrived += 1
            raise

    async def _predicted(self, call: Call, live: Live | None, action: str, asked: _Asked) -> Reply:
        try:
            reply = await _replied(call, self._predict(call, live, action, asked), live)
        finally:
            asked.place.leave()
        return _counted(live, reply, asked.came_ns)

    async def _contested(
        self, call: Call, contest: Contest, live: Live, key: str, action: str, asked: _Asked
    ) -> Reply:
        """As `_predicted`, by the version of this key; where the challenger fails, by the champion."""
        try:
            try:
                body = await self._body(call, asked)
            except DEFECTS as error:  # no version is to blame
                return _counted(live, error_reply(error, call, live.version), asked.came_ns)
            at = bucket(key)
            asked = asked._replace(compared=(contest.turn, at))
            if live is contest.challenger:
                reply, live = await self._challenged(call, contest, at, action, body, asked)
            else:
                reply, tried = await self._tried(call, live, action, body, asked)
                contest.see(live, at, tried)
                if contest.copies(key):
                    rows = partial(_copied, call, action, body)
                    contest.copy(Copy(at, call.id, rows, reply.status, tried.answers, len(body)))
        finally:
            asked.place.leave()
        return _counted(live, reply, asked.came_ns)

    async def _challenged(
        self, call: Call, contest: Contest, at: int, action: str, body: bytes, asked: _Asked
    ) -> tuple[Reply, Live]:
        """The challenger's reply, where it has one in good time, else the champion's; and whose it is."""
        most = self.admission.clock() + self._patience_s
        until = most if asked.until is None else min(asked.until, most)
        live = contest.challenger
        reply, tried = await self._tried(call, live, action, body, asked._replace(until=until))
        has_time = asked.until is None or self.admission.clock() < asked.until
        if reply.status in (UNABLE, REFUSED, LATE, *BROKEN) and has_time:
            live = contest.champion
            # These are no rows of the champion's own share.
            reply, _ = await self._tried(call, live, action, body, asked._replace(compared=None))
            tried = tried._replace(is_worse=reply.status == 200)
        contest.see(contest.challenger, at, tried)
        return reply, live

    async def _tried(
        self, call: Call, live: Live, action: str, body: bytes, asked: _Asked
    ) -> tuple[Reply, Tried]:
        """A version's reply to a request, whatever happens, and what it made of it."""
        began_ns, answers = time.perf_counter_ns(), None
        try:
            reply, answers = await self._answer(call, live, action, body, asked)
        except DEFECTS as error:  # whatever happens, the caller gets an answer
            reply = error_reply(error, call, live.version)
        latency_us = _since_us(began_ns)
        is_late = latency_us >= self._patience_s * 1e6
        return reply, Tried(reply.status, latency_us, answers, is_late)

    def _is_reserved(self, version: str | None) -> bool:
        """Whether this version is named, and is the challenger's."""
        challenger = self._versions.challenger
        return version is not None and challenger is not None and challenger.version == version

    async def _other(self, call: Call, version: str | None, action: str) -> Reply:
        live = self._versions.find(version)
        if action == READY:
            call.allow("GET")
            if live is None and version is not None and self._versions.loaded:
                raise NotFoundError("this version is not there")
            return json_reply({"live": True, "ready": live is not None}, 200 if live else 503)
        if action == LABELS and version is None:
            self._authorize(call, "label")
            call.allow("POST")
            call.limit(protocol.MAX_BODY_BYTES)
            return self._absent(call) if live is None else await self._take_labels(call, live)
        roles: tuple[Role, ...] = ("predict", "read") if action == METADATA else ("predict",)
        self._authorize(call, *(("admin",) if self._is_reserved(version) else roles))
        if action != METADATA:
            raise NotFoundError(f"there is nothing at {call.path[:SHOWN_PATH]!r}")
        call.allow("GET")
        return self._absent(call) if live is None else json_reply(self._metadata(live))

    async def _take_labels(self, call: Call, live: Live) -> Reply:
        """Stores what came true; it is on disk when the caller hears how many were taken."""
        until = deadline(call.header(TIMEOUT), self.admission.clock())
        body = await self._arrived(call, until)
        store = partial(self._store_labels, body, call.header("content-type") or "", live)
        taken = await self._labels.run(store, until=until, is_gone=call.is_gone, size=len(body))
        return json_reply({"labels": taken, "id": call.id})

    def _store_labels(self, body: bytes, content_type: str, live: Live) -> int:
        parsed = _decode_labels(live, body, content_type, self._hidden)
        kept = labels.without_erased(self._storage, parsed, live.served.whose)
        labels.write(self._storage, self._model, kept)
        # Who sends labels is not to find out by trying whose rows were erased.
        return parsed.height

    def _authorize(self, call: Call, *roles: Role) -> Caller:
        caller = authorize(self._keyring, call, *roles)
        if caller.rate is not None:
            self._rates.take(caller.name, caller.rate)
        return caller

    def _absent(self, call: Call) -> Reply:
        if self._versions.champion is None:
            return json_reply({"error": "the model is not loaded yet", "id": call.id}, 503)
        raise NotFoundError(
            f"this version of {self._model!r} is not loaded; there is {self._versions.loaded}"
        )

    def _metadata(self, live: Live) -> dict[str, Any]:
        return {
            "name": self._model,
            "versions": self._versions.loaded,
            "platform": PLATFORM,
            "inputs": [
                {"name": column.name, "datatype": protocol.DATATYPES[column.type], "shape": [-1]}
                for column in live.served.request.columns
            ],
            "outputs": [
                {"name": name, "datatype": protocol.OUTPUT_TYPES[name], "shape": [-1]}
                for name in live.served.outputs
            ],
        }

    async def _predict(self, call: Call, live: Live | None, action: str, asked: _Asked) -> Reply:
        if live is None:
            return self._absent(call)
        reply, _ = await self._answer(call, live, action, await self._body(call, asked), asked)
        return reply

    async def _answer(
        self, call: Call, live: Live, action: str, body: bytes, asked: _Asked
    ) -> tuple[Reply, Values]:
        """A version's reply to a request whose body is there, and its answers."""
        until, place = asked.until, asked.place
        request = await self._request(call, live, action, body, until)
        wants_why = request.parameters.get("explain") is True
        # What cannot be read costs next to nothing, and would make the others look as cheap.
        self._load.arrived += 1
        began_s = self.admission.clock() - self.admission.lag.seconds
        try:
            part = await live.predict(request.rows, until, call.is_gone)
        except DeadlineError:
            place.tells = True
            raise
        finally:
            self._load.answered(self.admission.clock() - began_s)
        if wants_why:
            # Explanations have a queue of their own (`MOST_WHYS`): nobody else waits for them.
            place.leave()
        explained = await self._explained(call, live, part, until) if wants_why else None
        place.tells = not wants_why
        if part.batch.failures.height:
            failures = part.failures
            live.tally.traffic.invalid.update(invalid(failures))
            refuse_rejected(failures, live.served.request, self._hidden)
        outputs = live.served.answers(part.values)
        encode = protocol.encode_infer if action == INFER else protocol.encode_predictions
        name = {"model": self._model, "version": live.version, "id": call.id}
        reply = Reply(200, *encode(request, outputs, explained=explained, **name))
        route = CHALLENGER if live is self._versions.challenger else CHAMPION
        live.log(part, call.id, _since_us(asked.came_ns), request.size, route, asked.compared)
        live.tally.keys[asked.caller] += part.stop - part.start
        return reply, part.values

    async def _request(
        self, call: Call, live: Live, action: str, body: bytes, until: float | None
    ) -> protocol.Request:
        try:
            if len(body) <= SMALL_BYTES:
                return _decode(call, live, action, body)
            decode = partial(_decode, call, live, action, body)
            return await self._large.run(decode, until=until, is_gone=call.is_gone, size=len(body))
        except InvalidRowError as error:
            if error.column is not None:
                rule = "missing_column" if error.row is None else "type"
                # Names that a caller made up are no columns of ours; they would be shown for ever.
                known = error.column if error.column in live.served.request.names else ""
                live.tally.traffic.invalid[known, rule] += 1
            raise

    async def _body(self, call: Call, asked: _Asked) -> bytes:
        """The body, which must come soon, and before the deadline."""
        encoding = call.header("content-encoding") or "identity"
        if encoding.lower() != "identity":
            raise UnsupportedMediaTypeError(
                f"the content encoding {encoding[:20]!r} is not read here; send it plain"
            )
        if call.is_whole:
            return await call.body(protocol.MAX_BODY_BYTES)
        # Who sends slowly is in nobody's way.
        asked.place.leave()
        body = await self._arrived(call, asked.until)
        asked.place.enter()
        return body

    async def _arrived(self, call: Call, until: float | None) -> bytes:
        """A body that is on its way, with few others; it must come soon, and before the deadline."""
        if self._bodies >= MOST_BODIES:
            raise OverloadedError(f"{MOST_BODIES} bodies are on their way already; ask again later")
        left_s = BODY_S if until is None else until - self.admission.clock()
        self._bodies += 1
        try:
            async with asyncio.timeout(min(left_s, BODY_S)):
                return await call.body(protocol.MAX_BODY_BYTES)
        except TimeoutError:
            if left_s < BODY_S:
                raise DeadlineError("the body had not come before the deadline") from None
            raise SlowBodyError(f"the body has not come within {BODY_S:.0f} s") from None
        finally:
            self._bodies -= 1

    async def _explained(
        self, call: Call, live: Live, part: Part, until: float | None
    ) -> Contributions | None:
        """The contributions to the rows of a part; `None` where one has failed, which is told later."""
        rows = part.stop - part.start
        if not self._explains:
            raise RequestError(
                "this service explains nothing; the project file would say explain: on_request"
            )
        if rows > MOST_EXPLAINED:
            raise TooLargeError(f"{rows} rows; at most {MOST_EXPLAINED} are explained at once")
        if np.isnan(part.values).any():
            return None
        explain = partial(live.served.predictor.explain, part.features, live.served.hidden)
        return await self._whys.run(explain, until=until, is_gone=call.is_gone)


#: Characters of a path that an error shows.
SHOWN_PATH = 200


async def _replied(call: Call, answer: Awaitable[Reply], live: Live | None = None) -> Reply:
    try:
        return await answer
    except DEFECTS as error:  # whatever happens, the caller gets an answer
        return error_reply(error, call, _version(live))


def _version(live: Live | None) -> str:
    return "" if live is None else live.version


def authorize(keyring: Keyring, call: Call, *roles: Role) -> Caller:
    """The caller, whose key has one of the roles (or is an admin's)."""
    return keyring.authorize(call.header("authorization"), *roles)


def _split(path: str, prefix: str) -> tuple[str | None, str]:
    """The version that a path names, and what is asked of it; of a path elsewhere, the path.

    >>> _split("/m/versions/3/infer", "/m"), _split("/m/infer", "/m"), _split("/infer", "/m")
    (('3', '/infer'), (None, '/infer'), (None, ' /infer'))
    """
    if not path.startswith(prefix):
        return None, f" {path}"
    rest = path[len(prefix) :]
    if not rest.startswith("/versions/"):
        return None, rest
    version, slash, action = rest.removeprefix("/versions/").partition("/")
    return version, slash + action


def _decode(call: Call, live: Live, action: str, body: bytes) -> protocol.Request:
    content_type = call.header("content-type")
    if action == INVOCATIONS:
        return protocol.decode_invocations(live.reader, body, content_type)
    length = call.header("inference-header-content-length")
    return protocol.decode_infer(live.reader, body, content_type, length, known=live.served.outputs)


def _decode_labels(live: Live, body: bytes, content_type: str, hidden: frozenset[str]) -> pl.DataFrame:
    served = live.served
    task = "regression" if served.threshold is None else "classification"
    rows = truth.decode(body, content_type)
    shown = [column for column in served.request.columns if column.name not in hidden]
    try:
        return labels.parse(rows, shown, task, served.labels)
    except DataError as error:
        raise InvalidRowError(str(error.without_data() if hidden else error)) from None
    except pl.exceptions.PolarsError:
        raise InvalidRowError("a column of the labels is not of the request's type") from None


def _copied(call: Call, action: str, body: bytes, live: Live) -> Rows:
    return _decode(call, live, action, body).rows


def _since_us(came_ns: int) -> int:
    return (time.perf_counter_ns() - came_ns) // 1000


def _counted(live: Live | None, reply: Reply, came_ns: int) -> Reply:
    """The reply, which the version that it is asked of counts."""
    if live is not None:
        traffic = live.tally.traffic
        traffic.requests[str(reply.status)] += 1
        traffic.request_us.update(_since_us(came_ns))
        if reply.rejected is not None:
            traffic.rejected[reply.rejected] += 1
    return reply
