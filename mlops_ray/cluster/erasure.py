"""Erasing a person's rows from all that a project keeps: the command `erase`.

The next run goes on where one was killed: the audit record hears of it, then it is noted whose rows are kept
out from now on, then the history is erased, of which all else is made anew.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from mlops_ray import audit
from mlops_ray.cluster import loads, mentions
from mlops_ray.cluster.stages import FILE, alone
from mlops_ray.config import Project
from mlops_ray.data import erasure as log
from mlops_ray.data import ingest, labels, prediction_log
from mlops_ray.data.erased import Erased
from mlops_ray.data.erasure import Key
from mlops_ray.data.error_log import DEFECTS
from mlops_ray.data.inputs import shown
from mlops_ray.errors import DataError, UsageError, did_you_mean, safe
from mlops_ray.features import erasure as features
from mlops_ray.features.erasure import HeldSet, Whose
from mlops_ray.features.history import ERASED, History
from mlops_ray.features.online import OnlineStore
from mlops_ray.features.shelves import ONLINE, kept_at_servers
from mlops_ray.features.store import FeatureStore
from mlops_ray.registry.registry import Registry
from mlops_ray.serving import deploy
from mlops_ray.storage import Storage

#: Files that show values of a source's rows: a page, its data, what was kept out, a preview.
SHOWN = ("validation-{}.html", "quarantine-{}.parquet", "explore-{}.json", "explore-{}.html")
#: Its counts stay.
LAST_READING = "validation-{}.json"
#: What a report says of a reading that shows no value of a row.
COUNTED = (
    "source",
    "made_at",
    "state",
    "version",
    "rows_in",
    "valid",
    "quarantined",
    "filtered",
    "erased",
    "files",
)

#: Where something of a model's requests is.
LOGGED = (prediction_log.FOLDER, prediction_log.MACHINE, labels.FOLDER)

#: What a person should know, or has to do.
INPUTS_STAY = (
    "what is read into the history is yours and stays as it is ({}): take the rows out there too; until then "
    "they are left out of every reading, and counted"
)
MODELS_STAY = (
    "what a model has learned cannot be taken out of it: {} learned from these rows; `train` makes a version "
    "without them"
)
OTHERS_STAY = "each source has a history of its own: erase in {} too what is of the same person"
LATE_ROWS = (
    "a service that runs writes what it has answered a few seconds later: call it again where it was asked "
    "about them meanwhile"
)
COPIES_STAY = (
    "the copies that the server of the online store keeps on its disk, and its replicas, are not looked at"
)
OTHER_SERVERS = (
    "a server at which the online store was before, or is by another project file of this storage, is not "
    "looked at: erase by a file that names it, or delete its keys {}*"
)
LOAD_TEST = (
    "a load test runs, and asks for rows of the log or of the history as they were ({}): call it again when "
    "that has ended"
)
BEGUN = (
    "{} may be of a writer that was killed within the last hour, and hold rows: call it again in an hour if "
    "that is still there"
)
KEYED_OTHERWISE = (
    "of a time when the source had other keys (by name or type) nobody can say by {} whose rows are in {}, "
    "and in what was made of them: erase by the project file of that time, or delete them"
)
MODELS_UNKNOWN = (
    "how requests of {} call somebody is not known, since no training set of theirs is left here: their "
    "predictions and labels are not looked at; erase by the project file of that time, or delete them"
)
SET_LEFT = (
    "the training set {} could not be computed anew and still holds the rows ({}): mend that and call it "
    "again, or delete the set"
)
TOO_SHORT = "the key is too short to be looked for in reports, packages and the documents of the monitor"


@dataclass(frozen=True)
class Found:
    """What there is of somebody, by place, and what was trained with it."""

    histories: dict[str, int]
    online: int
    logs: dict[str, log.Erased]
    sets: list[HeldSet]
    #: Reports, and what killed runs left.
    reports: list[str]
    versions: list[dict[str, Any]]

    @property
    def counts(self) -> dict[str, int]:
        """How many rows, records and sets are to be erased, by place."""
        return {
            "history": sum(self.histories.values()),
            "online": self.online,
            "predictions": sum(each.predictions for each in self.logs.values()),
            "labels": sum(each.labels for each in self.logs.values()),
            "training_sets": len(self.sets),
            "rows_of_training_sets": sum(each.rows for each in self.sets),
            "reports": len(self.reports),
        }


@dataclass(frozen=True)
class Erasure:
    """What one call erases, and why."""

    project: Project
    storage: Storage
    whose: Whose
    reason: str
    #: Sets that could not be computed anew, and why.
    left: dict[str, str] = field(default_factory=dict, init=False)

    @classmethod
    def of(
        cls, project: Project, storage: Storage, source: str, given: Mapping[str, str], reason: str
    ) -> "Erasure":
        """Raises `UsageError` for what is no source, key or reason, and for a reason that names the key."""
        if source not in project.sources:
            raise UsageError(f"--source: no source {source!r}{did_you_mean(source, project.sources)}")
        whose = Whose.of(source, project.sources[source], given)
        if not reason.strip():
            raise UsageError("--reason is empty; it is kept, so say why these rows are erased")
        values = {text.casefold() for text in (*whose.key.values(), *given.values())}
        if any(mentions.token(text).search(reason.casefold()) for text in values):
            raise UsageError(
                "--reason names whose rows they are, and it is kept: say it without the value of the key"
            )
        return cls(project, storage, whose, reason.strip())

    def run(self, agrees: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Erases what there is, if who hears what that is `agrees`; what was erased, or would have been.

        Who was killed within calls it again. Raises `DataError` where there is nothing of them.
        """
        document = self._document(self._found(), is_done=False)
        if not agrees(document):
            return document
        with alone(self.storage), self.storage.steady(erases=True):
            # While a person was asked others may have worked on the storage.
            return replace(self)._run()

    def _run(self) -> dict[str, Any]:
        found = self._found()
        for step in self.steps(found):
            step()
        return self._document(found, is_done=True)

    # ------------------------------------------------------------ what there is

    @cached_property
    def store(self) -> FeatureStore:
        return FeatureStore(self.project, self.storage)

    @cached_property
    def history(self) -> History:
        return self.store.history(self.whose.source)

    @property
    def erased(self) -> Erased:
        return self.history.erased

    def _found(self) -> Found:
        key = self.whose.key
        same = self.erased.find(key)
        before = [same] if same else self.erased.of_other_columns(key)
        hashed = before[0]["hash"] if before else None
        sets = features.held_sets(self.storage, self.whose, hashed, self.project.functions)
        found = Found(
            {history.folder.name: history.count(key) for history in self._histories},
            sum(len(records) for _, _, records in self._held_online()),
            {model: log.found(self.storage, model, keys) for model, keys in self._called.items()},
            sets,
            self._reports(),
            self._versions(hashed or "", sets),
        )
        if not before and not any(found.counts.values()):
            named = ", ".join(f"{name}={text}" for name, text in key.items())
            notes = "".join(f"; {note}" for note in self._unknown())
            raise DataError(
                f"there is no row of {self.whose.source!r} with this key, and nothing was made of one{notes}",
                said=f": {named}",
            )
        return found

    @property
    def _histories(self) -> list[History]:
        return features.histories(self.storage, self.history.view)

    @cached_property
    def _called(self) -> dict[str, Sequence[Key]]:
        """How the requests of each model call them."""
        is_target = self.project.target.source == self.whose.source
        own = features.called(self.store.features, self.history.view, self.whose, is_target=is_target)
        found: dict[str, dict[tuple[tuple[str, str], ...], Key]] = {}
        for model, keys in [
            (self.project.project, own),
            *(
                (asked.project, features.keys_of(asked, self.whose))
                for _, asked in features.manifests(self.storage)
            ),
        ]:
            found.setdefault(model, {}).update({tuple(key.items()): key for key in keys})
        return {model: list(keys.values()) for model, keys in found.items() if keys}

    def _held_online(self) -> Iterator[tuple[OnlineStore, str, list[str]]]:
        """Each online store, each of its tables, and the records there."""
        views, columns = {self.history.view.table: self.history.view.keys}, set(self.whose.typed.columns)
        for _, asked in features.manifests(self.storage):
            if self.whose.source in asked.as_of:
                view = asked.as_of[self.whose.source].table
                # Where the keys had other names, the values say whose a record is.
                views[view.table] = view.keys if columns <= set(view.keys) else ()
        with ExitStack() as opened:
            file = self.storage.path(ONLINE)
            # It stays where it is when `online:` names a server from some day on.
            stores = [opened.enter_context(closing(OnlineStore(file)))] if file.exists() else []
            if self.project.online is not None:
                stores.append(opened.enter_context(closing(self.store.online())))
            for store in stores:
                for table in (history.folder.name for history in self._histories):
                    yield store, table, store.held(table, views.get(table, ()), self.whose.typed)

    def _versions(self, hashed: str, sets: list[HeldSet]) -> list[dict[str, Any]]:
        """The registered versions that were trained with these rows."""
        trained = features.trained_before(self.storage, self.whose, hashed, sets)
        registry = Registry(deploy.tracking_uri(self.project, self.storage))
        return [
            {"model": model, "version": each["version"], "state": each["state"], "champion": each["champion"]}
            for model, digests in sorted(trained.items())
            for each in registry.versions(model)
            if each["dataset"] in digests
        ]

    # ------------------------------------------------------------ what is done

    def steps(self, found: Found) -> Iterator[Callable[[], object]]:
        """What is done, one after the other, each safe to repeat."""
        key = self.whose.key
        yield partial(self._tell, "rows are being erased", found)
        yield partial(self.erased.add, key, self.reason, self.whose.types)
        for history in self._histories:
            # Who writes a history holds what we hold: what is there of one was left.
            yield partial(history.erase, key, _commit_id(history), left_s=0)
        yield self._erase_online
        for model, keys in self._called.items():
            yield partial(log.erase, self.storage, model, keys)
        for held in found.sets:
            yield partial(self._supersede, held)
        yield partial(features.remove_spines, self.storage)
        yield self._clear_reports
        yield partial(ingest.clear, self.storage.root)
        yield partial(loads.clear, self.storage)
        yield partial(self._tell, "erased", found, is_done=True)

    def _supersede(self, held: HeldSet) -> None:
        """Computes a set anew; one with which that cannot be done leaves no other undone."""
        try:
            features.supersede(self.storage, held, self.erased.hash(self.whose.key), self.reason)
        except DEFECTS as error:
            self.left[held.path.name] = safe(error)

    def _erase_online(self) -> None:
        for store, table, records in self._held_online():
            store.erase(table, records)

    def _reports(self) -> list[str]:
        """The files that are cleared and name the key, or of which nobody knows whether they do."""
        root, name = self.storage.root, self.whose.source
        files = [
            *self._showing,
            *(path for path in [root / "reports" / LAST_READING.format(name)] if path.exists()),
            *(path for folder in (ingest.STAGING, loads.ASIDE) for path in mentions.files_of(root / folder)),
        ]
        found, unread = mentions.named(root, files, self.whose.key.values())
        return [*found, *unread]

    @property
    def _showing(self) -> list[Path]:
        """The files that show values of the source's rows, and those that a killed writer had begun."""
        folder = self.storage.root / "reports"
        shown = {name.format(self.whose.source) for name in SHOWN}
        begun = tuple(f".{name}." for name in (*shown, LAST_READING.format(self.whose.source)))
        every = folder.iterdir() if folder.is_dir() else ()
        found = [path for path in every if path.name in shown or path.name.startswith(begun)]
        return sorted([*found, *self.storage.root.glob(f".{FILE}.*")])

    @property
    def _shown(self) -> list[str]:
        """The files that `_clear_reports` clears."""
        every = [name.format(self.whose.source) for name in (*SHOWN, LAST_READING)]
        return [FILE, *(f"reports/{name}" for name in every)]

    def _clear_reports(self) -> None:
        """Removes what shows values of the source's rows; of the last reading the counts stay."""
        name = self.whose.source
        for path in self._showing:
            path.unlink(missing_ok=True)
        kept = self.storage.read_json("reports", LAST_READING.format(name))
        if kept is not None:
            self.storage.write_json(_counted(kept), "reports", LAST_READING.format(name))
        record = self.storage.read_json(FILE) or {}
        if f"ingest {name}" in record:
            stage = record[f"ingest {name}"]
            self.storage.write_json(
                record | {f"ingest {name}": stage | {"result": _counted(stage["result"])}}, FILE
            )

    def _tell(self, what: str, found: Found, *, is_done: bool = False) -> None:
        """Has the audit record hear of it, by what stands for the key."""
        versions = [f"{each['model']} {each['version']}" for each in found.versions]
        about: dict[str, Any] = {
            "source": self.whose.source,
            "key": self.erased.hash(self.whose.key),
            "reason": self.reason,
        }
        about |= {**found.counts, "trained_with": versions}
        if self.left:
            about["sets_left"] = sorted(self.left)
        audit.append(self.storage, what, audit.who(), about, is_done=is_done)

    # ------------------------------------------------------------ what is said

    def _document(self, found: Found, *, is_done: bool) -> dict[str, Any]:
        kept = mentions.kept(self.storage.root, but=() if is_done else self._shown)
        named, unread = mentions.named(self.storage.root, kept, self.whose.key.values())
        return {
            "source": self.whose.source,
            "erased": is_done,
            **found.counts,
            "sets": [each.path.name for each in found.sets],
            "versions": found.versions,
            "named_in": named,
            "left": self.left,
            "notes": [*self._notes(found), *(self._left_over() if is_done else ()), *unread],
        }

    def _notes(self, found: Found) -> Iterator[str]:
        """What a person should know, or has to do."""
        source, columns = self.project.sources[self.whose.source], set(self.whose.typed.columns)
        yield INPUTS_STAY.format(", ".join(shown(file) for file in source.inputs))
        if found.versions:
            named = [f"{each['model']} {each['version']} ({each['state']})" for each in found.versions]
            yield MODELS_STAY.format(", ".join(named))
        others = [name for name, other in self.project.sources.items() if columns & set(other.columns)]
        if others := [name for name in others if name != self.whose.source]:
            yield OTHERS_STAY.format(", ".join(others))
        if any((self.storage.root / prediction_log.FOLDER / model).is_dir() for model in self._called):
            yield LATE_ROWS
        if self.project.online is not None:
            yield COPIES_STAY
        if keys := kept_at_servers(self.storage):
            yield OTHER_SERVERS.format(keys)
        yield from self._unknown()
        for name, why in self.left.items():
            yield SET_LEFT.format(name, why)

    def _left_over(self) -> Iterator[str]:
        """What others still use."""
        if loads.is_running(self.storage):
            used = loads.aside(self.storage) or [self.storage.root / loads.ASIDE]
            yield LOAD_TEST.format(", ".join(str(each.relative_to(self.storage.root)) for each in used))
        for model in self._called:
            for top in LOGGED:
                for path in log.begun(self.storage.root / top / model):
                    yield BEGUN.format(path.relative_to(self.storage.root))

    def _unknown(self) -> Iterator[str]:
        """Where nobody knows whether something of theirs is."""
        if not any(len(text) >= mentions.LEAST_CHARACTERS for text in self.whose.key.values()):
            yield TOO_SHORT
        known = {self.project.project, *(asked.project for _, asked in features.manifests(self.storage))}
        every = (path for top in LOGGED for path in (self.storage.root / top).glob("*") if path.is_dir())
        if lost := sorted({path.name for path in every} - known):
            yield MODELS_UNKNOWN.format(", ".join(lost))
        if found := features.keyed_otherwise(self.storage, self.whose, self._histories):
            yield KEYED_OTHERWISE.format(", ".join(self.whose.typed.columns), ", ".join(found))


def _commit_id(history: History) -> str:
    """Of another erasure another: what was made of the newest commit is made anew."""
    newest = history.newest
    return f"{ERASED}{newest.version if newest else 0}"


def _counted(document: Mapping[str, Any]) -> dict[str, Any]:
    """A report of a reading without any value of a row."""
    checks = [check | {"examples": []} for check in document.get("checks", [])]
    said = "values of rows were taken out when some were erased; `validate` reports anew"
    kept = {name: document[name] for name in COUNTED if name in document}
    return kept | {"said": said, "checks": checks, "table": [], "findings": []}
