"""Where what costs is written down, and what of it may be believed.

cost/MODEL.json            what a model costs (`mlops_ray.cluster.meter.document`)
cost/settings/MODEL.json   what its project says (`mlops_ray.cluster.meter.Settings`)
cost/holds/MODEL.json      that more is not to be spent on it: {"most_replicas", "until": when that ends
                           (seconds since the epoch), "why": a sentence}
"""

from typing import Any

FOLDER = "cost"
HOLDS, SETTINGS = f"{FOLDER}/holds", f"{FOLDER}/settings"
#: The year 3000: what is of later is no instant.
LATEST_S = 32_503_680_000


def checked(document: Any) -> dict[str, Any] | None:
    """A document of costs whose figures are there; `None` of a damaged one, which the meter writes anew.

    >>> checked({"total": {"amount": "much"}}) is None
    True
    """
    try:
        amounts = [document["total"], *filter(None, [document.get("per_1000")])]
        numbers = [document["at"], *(each["amount"] for each in amounts)]
        # Jobs are named since some time.
        for at, cost, answered, parts, jobs, *named in document.get("days", []):
            numbers += [at, cost, answered, jobs, *parts.values()]
            numbers += [amount for each in named for amount in each.values()]
        numbers += [each["amount"] for each in document.get("jobs", []) if str(each["name"])]
        if (budget := document.get("budget")) is not None:
            numbers += [budget["per_day"], budget["spent"], *budget.get("named", {}).values()]
        fits = 0 <= document["at"] < LATEST_S and all(isinstance(each["currency"], str) for each in amounts)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return document if fits and all(type(each) in (int, float) for each in numbers) else None


def why(hold: Any, now: float) -> str:
    """Why nothing more is to be spent, in a sentence; empty of a hold that is over, damaged, or none.

    >>> why({"until": 9.0, "why": "all is spent"}, 8.0), why({"until": 9.0, "why": "all is spent"}, 9.0)
    ('all is spent', '')
    """
    until = hold.get("until") if isinstance(hold, dict) else None
    return str(hold.get("why", "")) if isinstance(until, int | float) and now < until else ""
