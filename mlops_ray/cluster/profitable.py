"""Whether a version may take the champion's place by what it earns (`mlops_ray.cost.profit.gate`).

    cost/worth/MODEL/VERSION.json      how wrong its answers to the test part are beside the champion's
    cost/verdicts/MODEL/VERSION.json   what the gate says of it, worked out as it is pushed

The first is written by who trains it, and says nothing of money: what an error costs is what the project
says when the version is pushed. The second is written by who pushes it; the reconciler goes by it
(`release.profit_gate`).
"""

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from mlops_ray.cluster import costs, meter
from mlops_ray.config import Project
from mlops_ray.cost import model, profit
from mlops_ray.cost.profit import Compared, Costs, Values, Version, Worth
from mlops_ray.errors import MlopsError, NotFoundError
from mlops_ray.registry.bootstrap import Blocks
from mlops_ray.serving import record
from mlops_ray.serving.record import VERDICTS
from mlops_ray.storage import Storage

WORTHS = "cost/worth"

Document = dict[str, Any]


def compared(
    project: Project,
    labels: Values,
    answers: Values,
    theirs: Values,
    blocks: Blocks,
    thresholds: tuple[float | None, float | None],
) -> Document | None:
    """How wrong a candidate's answers to rows of the test part are beside the champion's (`theirs`).

    `thresholds` are those of both. `None` where the project says of no worth, or the champion answered too
    few rows.
    """
    known = np.isfinite(theirs)
    if Worth.of(project.cost) is None or len(np.unique(blocks[known])) < 2:
        return None
    # Yes and no are counted where both say them.
    both = thresholds if None not in thresholds else (None, None)
    ours, beside = (
        profit.errors(labels[known], said[known], threshold)
        for said, threshold in zip((answers, theirs), both, strict=True)
    )
    return asdict(Compared.paired(ours, beside, blocks[known]))


def keep(storage: Storage, name: str, version: int, against: int, found: Document) -> None:
    """Writes down what `compared` found of a version beside the champion of then."""
    storage.write_json({"against": str(against), "errors": found}, WORTHS, name, f"{version}.json")


def _kept(storage: Storage, name: str, version: str) -> tuple[str, Compared] | None:
    """With which version one was compared, and how; `None` where that is not known.

    So it is of one that was compared by what answers were worth when it was trained.
    """
    found = storage.read_json(WORTHS, name, f"{version}.json")
    if found is None or "errors" not in found:
        return None
    return found["against"], Compared(**found["errors"])


def judge(project: Project, storage: Storage, version: int) -> str:
    """Works out whether a version may be released by what it earns, for the reconciler; in a sentence.

    Empty where nobody asks (`release.profit_gate: off`), or where no version is live.
    """
    name = project.project
    champion = record.read(storage, name).get("champion")
    if project.release.profit_gate == "off" or champion is None:
        return ""
    against = str(champion["version"])
    try:
        found = _verdict(project, storage, str(version), against)
        told = {"refused": found.refused, "said": found.said}
    except MlopsError as error:
        told = {"refused": True, "said": f"its profit is not known: {error}"}
    storage.write_json(told | {"against": against}, VERDICTS, name, f"{version}.json")
    return str(told["said"])


def missed(
    project: Project, storage: Storage, version: int, *, has_cost: bool, has_reason: bool = False
) -> list[str]:
    """What nobody knows of a version that was trained before its project spoke of money, and what to do.

    A sentence, or none; `has_cost` says whether it is known what its training took, `has_reason` whether its
    training said why it could not be compared with the champion.
    """
    name, lacks = project.project, []
    if project.cost.prices is not None and not has_cost:
        lacks.append("what that took is not known, and counts as nothing")
    champion = record.read(storage, name).get("champion")
    if (
        Worth.of(project.cost) is not None
        and champion is not None
        and champion["version"] != str(version)
        and not has_reason
        and _kept(storage, name, str(version)) is None
    ):
        lacks.append(f"its answers are not compared by worth with those of version {champion['version']}")
    if not lacks:
        return []
    told = f"version {version} was trained before this file said under cost what it says: {'; '.join(lacks)}"
    return [f"{told}. It is not trained again for that; another training.search.seed has it trained again"]


def said(storage: Storage, name: str, version: int) -> str:
    """What `judge` said last of a version."""
    return str((storage.read_json(VERDICTS, name, f"{version}.json") or {}).get("said", ""))


def _verdict(project: Project, storage: Storage, version: str, against: str) -> profit.Verdict:
    """Raises `MlopsError` for what is not known."""
    name = project.project
    worth, found = Worth.of(project.cost), _kept(storage, name, version)
    says = "the project says what an answer is worth (cost.value_per_prediction, cost.value)"
    if worth is None:
        raise NotFoundError(f"whether version {version} earns more than {against} is known where {says}")
    if found is None or found[0] != against:
        raise NotFoundError(
            f"version {version} was not compared with version {against} on the same rows, which `train` does "
            f"where {says}; another training.search.seed has it trained again"
        )
    known = {each: costs.training_cost(project, storage, each)[0] for each in (version, against)}
    unknown = [each for each, cost in known.items() if cost is None]
    # Of a version of which it is not known it is taken to be what it was of the other.
    trained = [0.0 if unknown else cost or 0.0 for cost in known.values()]
    left_out = f"that of {' and '.join(unknown)} has no known cost in {worth.currency}"
    stored, life = costs.storage_cost(project, storage) or 0.0, project.cost.training_life / costs.DAY_US
    sides, besides = [], f" (no training is counted: {left_out})" if unknown else ""
    difference, theirs = found[1].difference(worth), found[1].champions(worth)
    values = theirs + difference.mean, theirs
    for each, value, once in zip((version, against), values, trained, strict=True):
        spent, predictions, of = serving(project, storage, each, or_of=against)
        sides.append(Version(each, value, Costs(spent, once, life, stored)))
        if of != each:
            besides += f" (version {each} was not measured by loadtest: it is taken to be as fast as {of})"
    verdict = profit.gate(
        sides[0], sides[1], difference, predictions, worth.currency, project.cost.profit_margin
    )
    return replace(verdict, said=verdict.said + besides)


def serving(project: Project, storage: Storage, version: str, *, or_of: str) -> tuple[float, float, str]:
    """What it costs to serve a version for a day by the plan, for how many predictions, and at whose speed.

    One that was never measured has the resources, and is taken to have the speed, of `or_of`. Raises
    `MlopsError` where neither is known.
    """
    listed, _ = meter.priced(project)
    known = costs.capacities(storage, project.project)
    of = version if any(each.version == version for each in known) else or_of
    own = [each for each in known if each.version == of]
    load = costs.load(project)
    planned = model.plan(load, own, listed, costs.wanted(project))
    if planned.chosen is None or planned.chosen.capacity is None:
        raise NotFoundError(f"what version {version} costs is not known: {' '.join(planned.said)}")
    asked = model.mean(load) * 86_400 * planned.chosen.capacity.rows
    return planned.chosen.per_day, asked, of
