"""`serving.resources.machine`: on which type of machine replicas run, how large and how many, and why."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mlops_ray.cluster import costs
from mlops_ray.cluster.meter import MACHINE, MARKET, SPOT
from mlops_ray.config import Project
from mlops_ray.errors import ConfigError, MlopsError
from mlops_ray.storage import Storage

AUTO = "auto"


class Machines(NamedTuple):
    """The types of a cluster's machines: `labelled` are those of nodes that say theirs, and are there or may
    come; `unlabelled` is what the project says of the others, where there are some.

    `room` says how many replicas of so many CPUs and GPUs find room on nodes with such labels now.
    """

    labelled: frozenset[str]
    unlabelled: str | None = None
    room: Callable[[float, float, Mapping[str, str]], int] = lambda cpu, gpu, labels: 1

    def __contains__(self, machine: object) -> bool:
        return machine in self.labelled or machine == self.unlabelled

    def labels(self, machine: str, spot: bool) -> dict[str, str]:
        """Of the nodes of this type; none that may be taken away, but where `spot` ones were chosen.

        Then others of the type do, too: better than none, where no spot node is to be had.

        >>> Machines(frozenset({"big"})).labels("big", spot=False)
        {'machine': 'big', 'ray.io/market-type': '!spot'}
        >>> Machines(frozenset(), unlabelled="big").labels("big", spot=False)
        {}
        >>> Machines(frozenset({"other"}), unlabelled="big").labels("big", spot=False)
        {'machine': '!in(other)'}
        """
        if machine not in self.labelled:
            return {MACHINE: f"!in({','.join(sorted(self.labelled))})"} if self.labelled else {}
        return {MACHINE: machine} | ({} if spot else {MARKET: f"!{SPOT}"})


class Sized(NamedTuple):
    """A project whose replicas have a size; the plan that they have it from, as `costs.plan`; and notes."""

    project: Project
    plan: dict[str, Any] | None
    notes: list[str]


def sized(project: Project, storage: Storage, here: Callable[[], Machines]) -> Sized:
    """The project with replicas as the cheapest measured way to bear its load has them, on its machines.

    That is looked for among the machines that are `here`, or of the one type that the project names. Who says
    how large a replica is gets that. Where the prices or the load are not said, or nothing was measured on
    what there is, the project is as it was, and a note says why; without prices or load only where it asks
    for `auto` in so many words. Raises `ConfigError` where it names a type of which there is none.
    """
    resources = project.serving.resources
    said, named = resources.model_fields_set, resources.machine != AUTO
    has_size = bool(said & {"cpu", "gpu"})
    if named:
        project = on(project, resources.machine, here())
    can_plan = project.cost.prices is not None and project.cost.load is not None
    if has_size or not (can_plan or "machine" in said):
        return Sized(project, None, [])
    size = f"{resources.cpu:g} CPU a replica (serving.resources.machine: {resources.machine}): "
    try:
        plan = costs.plan(project, storage)
    except MlopsError as error:
        return Sized(project, None, [f"{size}{error}"])
    options = [each for each in plan["options"] if not each["refused"]]
    if not options:
        return Sized(project, None, [f"{size}{' '.join([*plan['said'], *plan['notes']])}"])
    machines = here()
    wanted = {resources.machine} if named else machines
    chosen = next((each for each in options if each["machine"] in wanted), None)
    if chosen is not options[0]:
        cheapest = f"{options[0]['machine']} is the cheapest"
        cheapest += ", and another is named" if named else ", of which there is none here"
        if chosen is None:
            return Sized(project, plan, [f"{size}{cheapest}"])
        plan["notes"].append(f"{cheapest}: replicas are of a size for {chosen['machine']}")
        plan["chosen"] = plan["options"].index(chosen)
    return Sized(_as_planned(project, chosen, machines), plan, list(plan["notes"]))


def on(project: Project, machine: str, machines: Machines) -> Project:
    """The project with replicas on this type of machine; raises `ConfigError` where there is none."""
    if machine not in machines:
        known = sorted({*machines.labelled, *filter(None, [machines.unlabelled])})
        unsaid = "no node says its type by the label `machine`, nor the project by cost.machine"
        told = f"there are {', '.join(known)}" if known else unsaid
        raise project.located(
            ConfigError(
                f"there is no machine of type {machine!r} here, and none may come: {told}",
                at=("serving", "resources", "machine"),
            )
        )
    return _with(project, labels=_labels(project, machines.labels(machine, project.cost.spot)))


def _as_planned(project: Project, chosen: Mapping[str, Any], machines: Machines) -> Project:
    """The project with the size and the number of replicas of an option, as far as there is room for them."""
    serving, capacity, machine = project.serving, chosen["capacity"], chosen["machine"]
    cpu, gpu = capacity["cpu"], capacity["gpu"]
    labels = _labels(project, machines.labels(machine, chosen["spot"]))
    project = _with(project, machine=machine, cpu=cpu, gpu=gpu, labels=labels)
    changed: dict[str, Any] = {
        "batching": serving.batching.model_copy(update={"max_rows": capacity["max_rows"]})
    }
    if serving.replicas.initial is None:
        # More than find room would keep the service from coming up; autoscaling asks for them.
        count = min(max(chosen["replicas"]), machines.room(cpu, gpu, labels))
        initial = max(count, serving.replicas.min, 1)
        changed["replicas"] = serving.replicas.model_copy(update={"initial": initial})
    return project.model_copy(update={"serving": project.serving.model_copy(update=changed)})


def _labels(project: Project, found: Mapping[str, str]) -> dict[str, str]:
    """Those that were found and those that the project says, which count before."""
    return {**found, **project.serving.resources.labels}


def _with(project: Project, **resources: Any) -> Project:
    """The project with replicas of other resources."""
    changed = project.serving.resources.model_copy(update=resources)
    return project.model_copy(update={"serving": project.serving.model_copy(update={"resources": changed})})
