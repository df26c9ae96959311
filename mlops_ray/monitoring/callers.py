"""Who asked for how much: the rows that versions answered, hour by hour, by the name of the caller's key.

A key that was taken away keeps its name here. Names are for the operator, and for who holds an admin key.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from mlops_ray.monitoring.state import Minute

#: Rows by the name of the key, by version and hour (when it began, seconds since the epoch).
Asked = dict[tuple[str, int], Mapping[str, int]]


def asked(hours: Iterable[Mapping[str, Any]], state: Mapping[str, Any]) -> Asked:
    """What lines of `journal.TRAFFIC` say, and the monitor's document, of the hour that goes on.

    >>> asked([{"version": "3", "since": 0, "keys": {"shop": 2}}, {"version": "2", "since": 0}], {})
    {('3', 0): {'shop': 2}, ('2', 0): {}}
    """
    # Earlier lines do not say who asked.
    found: Asked = {(line["version"], int(line["since"])): line.get("keys", {}) for line in hours}
    for version, watched in state.get("versions", []):
        for hour in map(Minute.from_json, watched.get("hours", [])):
            found[version, hour.at] = hour.keys
    return found
