"""`serving.resources.machine`: on which type of machine replicas run, how large, and why."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from mlops_ray.cluster import costs
from mlops_ray.config import Project
from mlops_ray.errors import MlopsError
from mlops_ray.storage import Storage

AUTO = "auto"


class Sized(NamedTuple):
    """A project whose replicas have a size; the plan that they have it from, as `costs.plan`; and notes."""

    project: Project
    plan: dict[str, Any] | None
    notes: list[str]


def sized(project: Project, storage: Storage, here: Callable[[], Collection[str]] | None = None) -> Sized:
    """The project with replicas as the cheapest measured way to bear its load has them.

    `here` are the types of machines that there are; by default whichever. Who says how large a replica is
    gets that. Where the prices or the load are not said, or nothing was measured on what there is, the
    project is as it was, and a note says why; without prices or load only where it asks for `auto` in so many
    words.
    """
    resources = project.serving.resources
    said = resources.model_fields_set
    if resources.machine != AUTO or said & {"cpu", "gpu"}:
        return Sized(project, None, [])
    asks = "machine" in said
    if not asks and (project.cost.prices is None or project.cost.load is None):
        return Sized(project, None, [])
    size = f"{resources.cpu:g} CPU a replica (serving.resources.machine: auto): "
    try:
        plan = costs.plan(project, storage)
    except MlopsError as error:
        return Sized(project, None, [f"{size}{error}"])
    options = [each for each in plan["options"] if not each["refused"]]
    if not options:
        return Sized(project, None, [f"{size}{' '.join([*plan['said'], *plan['notes']])}"])
    types = {each["machine"] for each in options} if here is None else set(here())
    chosen = next((each for each in options if each["machine"] in types), None)
    if chosen is not options[0]:
        cheapest = f"{options[0]['machine']} is the cheapest, of which there is none here"
        if chosen is None:
            return Sized(project, plan, [f"{size}{cheapest}"])
        plan["notes"].append(f"{cheapest}: replicas are of a size for {chosen['machine']}")
        plan["chosen"] = plan["options"].index(chosen)
    capacity = chosen["capacity"]
    changed = {
        "resources": resources.model_copy(
            update={"machine": chosen["machine"], "cpu": capacity["cpu"], "gpu": capacity["gpu"]}
        ),
        "batching": project.serving.batching.model_copy(update={"max_rows": capacity["max_rows"]}),
    }
    serving = project.serving.model_copy(update=changed)
    return Sized(project.model_copy(update={"serving": serving}), plan, list(plan["notes"]))
