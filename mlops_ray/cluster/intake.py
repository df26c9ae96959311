"""The intake of sources: what is new of their files and queries, checked, reported, and stored.

What a history holds of an input is kept with its commit, so that the same content is read once, and a changed
one adds only the rows that are not there yet.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import polars as pl

from mlops_ray import audit
from mlops_ray.cluster import evidence
from mlops_ray.cluster.stages import Stages
from mlops_ray.config import File, Project, Source, Target
from mlops_ray.data import blocks, ingest, inputs
from mlops_ray.data.erased import family
from mlops_ray.data.explore import Aim, explore
from mlops_ray.data.explore_page import explore_page
from mlops_ray.data.ingest import Staged
from mlops_ray.data.inputs import shown
from mlops_ray.data.report import report_findings, report_page
from mlops_ray.data.rules import MOST_ROWS, Proposal, mine
from mlops_ray.data.validate import Report
from mlops_ray.errors import DataError
from mlops_ray.expressions import compile_sql, function_digest
from mlops_ray.features.commits import Batch, buckets_of
from mlops_ray.features.history import ERASED, Commit
from mlops_ray.features.store import FeatureStore
from mlops_ray.policy import curated
from mlops_ray.schema import DTYPES
from mlops_ray.serving import deploy
from mlops_ray.storage import Storage, digest, replacing

#: How long files that a compaction left behind are kept for those who read them: longer than any run.
VACUUM_H = 168
#: Where more rows than these fail, it is the file or the project that is wrong, not the rows.
MOST_QUARANTINED = 0.5

#: A first look shows so many rows, found among so many.
PREVIEW, PREVIEWED = 20, 10_000
#: Of a hash in hex: Delta keeps a signed number of 64 bits.
MARK_DIGITS = 15
#: What the audit record says of a commit.
STORED = "rows were stored"

#: The name by which a history knows an input, and the number that its content has; none for a query.
Mark = tuple[str, int | None]


def require_readable(project: Project) -> None:
    """Raises `DataError` or `ConfigError` for a source that cannot be read."""
    for name, source in project.sources.items():
        for file in inputs.find(source, name):
            blocks.check_header(file, source)


@dataclass
class Intake:
    """Brings the sources of a project into their histories."""

    store: FeatureStore
    storage: Storage
    stages: Stages
    #: Called before something is read on Ray.
    connect: Callable[[], object] = lambda: None

    def afresh(self) -> "Intake":
        """The same intake, which has done nothing yet."""
        return replace(self, stages=Stages(self.storage, self.stages.progress))

    def ingest(self, name: str) -> str:
        """Reads what is new or changed of a source into its history; the id of its newest commit."""
        source, history = self.store.project.sources[name], self.store.history(name)
        found = inputs.find(source, name)
        marks = _marks(found, source)
        if _is_whole(source):
            # Also a file that is no longer there is news.
            marks.append(("inputs", int(digest(sorted(mark for mark, _ in marks))[:MARK_DIGITS], 16)))
        stored = history.inputs
        news = [mark for mark in marks if mark[1] is None or stored.get(mark[0]) != mark[1]]
        # Behind an input that changed all are read again: later ones may correct it.
        changed = [mark in news and mark[0] in stored for mark in marks[: len(found)]]
        first = changed.index(True) if True in changed else len(found)
        wanted = [
            file
            for place, (file, mark) in enumerate(zip(found, marks, strict=False))
            if mark in news or place > first or _is_whole(source)
        ]
        # Only what was stored before, or may have been, needs a look at what is there.
        is_known = any(number is None or mark in stored for mark, number in news)
        self.stages.run(
            f"ingest {name}",
            {"table": history.view.table, "marks": marks},
            lambda: self._read(name, wanted, news, is_known=is_known),
            say=_say_ingest,
            still_there=lambda _: not news,
            before=self.connect,
        )
        return history.commit or ""

    def _read(
        self, name: str, wanted: Sequence[File], news: Sequence[Mark], *, is_known: bool
    ) -> dict[str, Any]:
        """Brings what is new of a source into its history; its report."""
        if not news:
            # A run was cut off between its commit and its record of it.
            self._tell_untold(name)
            kept = self.storage.read_json("reports", f"validation-{name}.json")
            return {**Report().to_json(), **(kept or {}), "state": "committed"}
        source, history = self.store.project.sources[name], self.store.history(name)
        before, is_whole = history.commit, _is_whole(source)
        audit.require(self.storage)
        with self.staged(name, wanted, is_incremental=not is_whole) as staged:
            self._require_good(staged, may_be_empty=before is not None)
            batch = Batch(
                staged.chunks,
                staged.report.valid,
                inputs={mark: number or 0 for mark, number in news},
                is_known=before is not None and (is_known or is_whole),
                is_whole=before is not None and is_whole,
            )
            # Counted before what it reports: a run may be cut off in between.
            document = self._document(staged, "checked")
            self.storage.write_json(document, "reports", f"validation-{name}.json")
            commit = history.store(batch, source, digest([before, news]))
            if commit.id != before:
                counted = {key: document[key] for key in ("rows_in", "valid", "quarantined")}
                self._tell_stored(name, commit, {"before": before, **counted})
            document |= {"state": "committed", "version": commit.version}
            self._write(f"validation-{name}", document, report_page(document))
            history.maintain(vacuum_hours=VACUUM_H)
            return document

    def validate(self, name: str) -> dict[str, Any]:
        """Reads and checks a source, and stores nothing; its report, `refused` where none of it would be."""
        with self.stages.timed(f"validate {name}", _say_ingest) as result:
            try:
                with self.staged(name) as staged:
                    self._require_good(staged, may_be_empty=False)
                    self._report(staged, "checked")
            except DataError as error:
                self.stages.progress.update(str(error))
            result |= self.storage.read_json("reports", f"validation-{name}.json")
        return result

    def explore(self, name: str) -> dict[str, Any]:
        """A first look at a source, as JSON and as a page under `reports/`; the JSON."""
        source, target = self.store.project.sources[name], self.store.project.target
        with self.stages.timed(f"explore {name}", _say_explored) as result, self.staged(name) as staged:
            result |= explore(
                staged.scan(),
                staged.view,
                name=name,
                target=_aim(target) if target.source == name else None,
                preview=_preview(staged, source),
                seed=self.store.project.training.search.seed,
            )
            self._tell_shown(name, "a first look", len(result["preview"]["rows"]))
        self._write(f"explore-{name}", result, explore_page(result))
        return result

    def mine(self, name: str) -> list[Proposal]:
        """Rules that the rows of a source keep, for a person to approve."""
        source = self.store.project.sources[name]
        with self.stages.timed(f"mine {name}", _say_mined) as result, self.staged(name) as staged:
            columns, policy = source.row_schema.columns, source.policy
            every = 1 + staged.report.valid // MOST_ROWS
            rows = staged.scan().gather_every(every).select(column.name for column in columns).collect()
            result["rules"] = mine(rows, columns, hidden=source.hidden, minimum_count=policy.minimum_count)
            self._tell_shown(name, "proposed rules", len(result["rules"]))
        return list(result["rules"])

    @contextlib.contextmanager
    def staged(
        self, name: str, files: Sequence[File] | None = None, *, is_incremental: bool = False
    ) -> Iterator[Staged]:
        """The checked rows of a source, or of some of its files, while the block lasts."""
        source = self.store.project.sources[name]
        files = inputs.find(source, name) if files is None else files
        partition = partial(buckets_of, keys=source.entity)
        after = self._cursors(name, files) if is_incremental else {}
        with ingest.staging(source, name, files, self.storage.root) as staged:
            try:
                types = {name: family(DTYPES[column.type]) for name, column in source.columns.items()}
                self.store.history(name).erased.require_told(name, types)
                ingest.read(
                    staged,
                    partition,
                    after=after,
                    on_progress=lambda report: self.stages.progress.update(f"{report.rows_in:,} rows"),
                )
            except DataError as error:
                self._report(staged, "refused", said=str(error))
                raise
            finally:
                if staged.nodes:
                    about = {"source": name, "rows": staged.report.rows_in}
                    evidence.tell(self.storage, [source.policy], "rows were read", about, staged.nodes)
            yield staged

    def _cursors(self, name: str, files: Sequence[File]) -> dict[int, object]:
        """From where on a query reads that was stored before: the newest value of its cursor."""
        source, history = self.store.project.sources[name], self.store.history(name)
        (query, *others) = source.inputs
        if others or query.sql is None or query.sql.cursor is None:
            return {}
        ((mark, _),) = _marks(files, source)
        value = history.greatest(query.sql.cursor) if mark in history.inputs else None
        return {0: value} if value is not None else {}

    def _require_good(self, staged: Staged, *, may_be_empty: bool) -> None:
        """Raises `DataError` where what was read is not to be stored; its report says so too."""
        refusal = _refusal(staged, self.storage.path("reports", f"quarantine-{staged.name}.parquet"))
        if refusal is None and not (staged.report.valid or may_be_empty):
            refusal = DataError(
                f"source {staged.name!r} has no rows"
                + (" that its where lets through" * bool(staged.report.rows_in))
            )
        if refusal is not None:
            self._report(staged, "refused", said=str(refusal))
            raise refusal

    def _report(self, staged: Staged, state: str, said: str | None = None) -> None:
        """Writes the report of a reading, as JSON and as a page, and the quarantine beside it."""
        document = self._document(staged, state, said)
        self._write(f"validation-{staged.name}", document, report_page(document))

    def _document(self, staged: Staged, state: str, said: str | None = None) -> dict[str, Any]:
        """The report of a reading as plain JSON, its quarantine written."""
        document = {"state": state, "said": said, **staged.to_json()}
        examples = [each["value"] for check in document["checks"] for each in check["examples"]]
        if document["checks"]:
            self._tell_shown(staged.name, "a report", len(examples) - examples.count(None))
        staged.write_quarantine(self.storage.path("reports", f"quarantine-{staged.name}.parquet"))
        return document | {"findings": report_findings(document)}

    def _tell_untold(self, name: str) -> None:
        """Has the audit record hear of the newest commit where a run that was cut off did not tell it."""
        commit = self.store.history(name).newest
        # Delta drops its log of long ago: such a commit has no id any more, and was told when it had.
        if commit is None or not commit.id or commit.id.startswith(ERASED):
            return
        told = (each["about"] for each in audit.entries(self.storage) if each["what"] == STORED)
        if (name, commit.id) not in ((each["source"], each["after"]) for each in told):
            self._tell_stored(name, commit, {})

    def _tell_stored(self, name: str, commit: Commit, about: dict[str, Any]) -> None:
        made = {"source": name, "after": commit.id, "version": commit.version}
        audit.append(self.storage, STORED, audit.who(), made | about, is_done=True)

    def _tell_shown(self, name: str, where: str, rows: int) -> None:
        """Has the audit record hear of rows that people may see, before they do."""
        audit.append(
            self.storage, "rows were shown", audit.who(), {"source": name, "in": where, "rows": rows}
        )

    def _write(self, name: str, document: dict[str, Any], page: str) -> None:
        self.storage.write_json(document, "reports", f"{name}.json")
        with replacing(self.storage.path("reports", f"{name}.html")) as file:
            file.write_text(page, encoding="utf-8")


def _is_whole(source: Source) -> bool:
    """Whether the inputs are the whole table; where order is time, a row's place depends on all before it."""
    return source.ingestion == "full" or bool(source.event_time and source.event_time.order)


def _marks(files: Sequence[File], source: Source) -> list[Mark]:
    """What tells whether inputs are as they were stored: content, how they are read, and our own code."""
    how = [deploy.code_digest(), {path: function_digest(path) for path in sorted(source.deriving)}]
    marks: list[Mark] = []
    names: Counter[str] = Counter()
    for file in files:
        options = file.model_dump(mode="json", exclude={"path", "sql"}, exclude_defaults=True)
        content = _content(file)
        number = int(digest([content, options, how])[:MARK_DIGITS], 16) if content is not None else None
        name = digest([shown(file), file.sql.query if file.sql else None])[:32]
        # The same file may stand there twice, to be read in two ways.
        marks.append((f"input:{name}-{names[name]}", number))
        names[name] += 1
    return marks


def _content(file: File) -> str | None:
    """The fingerprint of an input; of a file that has not been written to since, the one found before."""
    path = Path(file.path or "")
    if file.path is None or "://" in file.path or not path.is_file():
        return inputs.fingerprint(file)
    about = path.stat()
    return _of_file(file.path, about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)


@lru_cache(maxsize=100_000)
def _of_file(path: str, *_: int) -> str | None:
    return inputs.fingerprint(File(path=path))


def _refusal(staged: Staged, kept: Path) -> DataError | None:
    """Why what was read cannot be trusted; `None` where it can."""
    report = staged.report
    if report.quarantined > MOST_QUARANTINED * report.rows_in:
        first = next(check for check in report.checks.values() if check.severity == "reject")
        example = first.examples[0]
        shown = f" with {example['value']!r}" if example["value"] is not None else ""
        return DataError(
            f"{report.quarantined:,} of {report.rows_in:,} rows of {staged.name!r} are in quarantine "
            f"({kept}); the first fails {first.rule!r}",
            file=example["file"],
            row=example["row"],
            column=first.column,
            said=shown,
        )
    broken = [check["said"] for check in staged.table if not check["holds"] and check["severity"] == "stop"]
    return DataError(f"source {staged.name!r}: {'; '.join(broken)}") if broken else None


def _say_ingest(result: dict[str, Any]) -> str:
    flagged = sum(check["failed"] for check in result["checks"] if check["severity"] == "flag")
    rest = f", {flagged:,} flagged" if flagged else ""
    rest += f", {result['erased']:,} left out since they were erased" if result.get("erased") else ""
    return f"{result['valid']:,} rows valid, {result['quarantined']:,} in quarantine{rest}"


def _preview(staged: Staged, source: Source) -> pl.DataFrame:
    """Some rows as people may see them: without what is made of hidden columns either."""
    masked = source.policy.curated.mask if source.policy.curated else {}
    rows = curated(staged.first(PREVIEWED), source.policy)
    return rows.drop(source.hidden.difference(masked), strict=False).head(PREVIEW)


def _aim(target: Target) -> Aim:
    return Aim(compile_sql(target.expr).polars, target.task, target.positive)


def _say_explored(result: dict[str, Any]) -> str:
    return f"{result['profile']['rows']:,} rows"


def _say_mined(result: dict[str, Any]) -> str:
    return f"{len(result['rules'])} rules to look at"
