"""Which version answers a request, a pure function of its key and of what the release document says.

A key is the header X-Routing-Key, else the request's id. It has a place between 0 and 100, which depends on
the challenger too, so that not the same keys try every new version; the challenger answers those below its
weight. A key therefore keeps its side, and a higher weight moves keys toward the challenger alone.
"""

import hashlib
from dataclasses import dataclass

from mlops_ray.monitoring.sides import hashed

#: As many places as eight bytes tell apart.
PLACES = 2**64


@dataclass(frozen=True)
class Split:
    """Whom a model's keys belong to: `weight` of 100 to the challenger, whose digest tells it from others.

    Of `shadow` of 100 keys the challenger is asked besides, unknown to the caller.
    """

    challenger: str | None = None
    weight: float = 0.0
    shadow: float = 0.0

    def tries(self, key: str) -> bool:
        """Whether the challenger answers this key.

        >>> Split("digest", weight=0).tries("meter-1"), Split("digest", weight=100).tries("meter-1")
        (False, True)
        """
        return self.challenger is not None and place(key, self.challenger) < self.weight

    def is_shadowed(self, key: str) -> bool:
        """Whether the challenger is asked besides."""
        return self.challenger is not None and place(key, f"shadow {self.challenger}") < self.shadow


def place(key: str, salt: str) -> float:
    """Where a key stands, from 0 to below 100; the keys of a salt are spread evenly.

    >>> 0 <= place("meter-1", "a") < 100, place("meter-1", "a") == place("meter-1", "b")
    (True, False)
    """
    person = hashlib.blake2b(salt.encode(), digest_size=hashlib.blake2b.PERSON_SIZE).digest()
    return 100 * hashed(key, person) / PLACES
