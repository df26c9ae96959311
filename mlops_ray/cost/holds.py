"""Where what costs is written down, and what a hold says: that more is not to be spent on a model.

cost/holds/MODEL.json   {"most_replicas", "until": when it ends (seconds since the epoch), "why": a sentence}
"""

from typing import Any

FOLDER = "cost"
HOLDS = f"{FOLDER}/holds"


def why(hold: Any, now: float) -> str:
    """Why nothing more is to be spent, in a sentence; empty of a hold that is over, damaged, or none.

    >>> why({"until": 9.0, "why": "all is spent"}, 8.0), why({"until": 9.0, "why": "all is spent"}, 9.0)
    ('all is spent', '')
    """
    until = hold.get("until") if isinstance(hold, dict) else None
    return str(hold.get("why", "")) if isinstance(until, int | float) and now < until else ""
