"""What runs beside replicas, by name: trainings by their project, other jobs of Ray by their command.

A name is for people, on pages and in alerts: of a command it has the program, and the plain words and files
behind it. That keeps out options, variables and what looks like a key, not a secret that is a plain word.
"""

import math
import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import PurePath
from typing import Any, NamedTuple

#: Of a resource less than this is rounding.
LEAST = 1e-3
#: What uses a node beside replicas, and nobody knows more of it.
JOBS = "jobs"
#: What is named is "training MODEL", "job …", or the name of replicas that are measured and answer nobody: in
#: no name of a model is there such a sign (loads.py).
TRAINING, JOB, ASIDE = "training", "job", "."
#: Names that a line of the journal has of a node, and the length of one's parts; what else runs is of `JOBS`.
MOST_NAMES, MOST_WORDS, LONGEST = 20, 3, 40
PYTHON = re.compile(r"python[0-9.]*")
PROGRAM = re.compile(rf"[A-Za-z_][\w.-]{{0,{LONGEST - 1}}}", re.ASCII)
SUBCOMMAND = re.compile(r"[a-z][a-z-]{0,19}")
FILE = re.compile(rf"[\w./-]*?(?P<name>[\w.-]{{1,{LONGEST}}}\.(?:py|sh|ya?ml|toml|json))", re.ASCII)
#: Where Ray writes, among what a job is told, what it was submitted as.
SUBMITTED = "job_submission_id"

Held = dict[str, Any]


class Work(NamedTuple):
    """What a job, by its name, holds of a node."""

    node: str
    name: str
    cpu: float
    gpu: float


def held_by(works: Sequence[Work], cpu: float, gpu: float) -> dict[str, Held]:
    """What each name has of a node's CPUs and GPUs that are held beside replicas; `JOBS` has the rest.

    Where they add up to more (a task that waits for another has given back what it holds, and Ray says so
    before it says that it waits) each has its part.

    >>> held_by([Work("a", "job one", 0.5, 0.0), Work("a", "job two", 1.0, 0.0)], 2.0, 0.0)
    {'job one': {'count': 1, 'cpu': 0.5, 'gpu': 0.0}, 'job two': {'count': 1, 'cpu': 1.0, 'gpu': 0.0},
     'jobs': {'count': 1, 'cpu': 0.5, 'gpu': 0.0}}
    >>> held_by([Work("a", "job one", 0.5, 0.0), Work("a", "job two", 1.0, 0.0)], 0.75, 0.0)
    {'job one': {'count': 1, 'cpu': 0.25, 'gpu': 0.0}, 'job two': {'count': 1, 'cpu': 0.5, 'gpu': 0.0}}
    """
    cpus, gpus = (_sums(works, size) for size in ("cpu", "gpu"))
    cpu_scale, gpu_scale = _scale(cpu, cpus), _scale(gpu, gpus)
    found = {name: (cpus[name] * cpu_scale, gpus[name] * gpu_scale) for name in cpus if name != JOBS}
    most = sorted(found, key=lambda name: (found[name][::-1], name), reverse=True)[:MOST_NAMES]
    found = {name: found[name] for name in sorted(most) if max(found[name]) > LEAST}
    rest = cpu - math.fsum(size[0] for size in found.values()), gpu - math.fsum(s[1] for s in found.values())
    if max(rest) > LEAST:
        found[JOBS] = max(rest[0], 0.0), max(rest[1], 0.0)
    return {name: {"count": 1, "cpu": size[0], "gpu": size[1]} for name, size in found.items()}


def _sums(works: Sequence[Work], size: str) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for each in works:
        sums[each.name] += getattr(each, size)
    return sums


def _scale(held: float, asked: Mapping[str, float]) -> float:
    """The share of what is asked for that there is."""
    whole = math.fsum(asked.values())
    return min(1.0, max(held, 0.0) / whole) if whole > 0 else 1.0


def named(id: str, command: str, told: Mapping[str, str]) -> str:
    """The name of a job of Ray: as what it was submitted, if it was (`told` says so), and its command.

    >>> named("02000000", "python3 -u fit.py --key s3cr3t", {"job_submission_id": "nightly"})
    'job nightly (fit.py)'
    >>> named("02000000", "/bin/python /bin/mlops-ray ingest load.yaml", {}), named("02000000", "", {})
    ('job mlops-ray ingest load.yaml', 'job 02000000')
    """
    submitted, said = told.get(SUBMITTED, ""), words(command)
    if not submitted:
        return f"{JOB} {said or safe_id(id)}"
    return f"{JOB} {safe_id(submitted)}" + (f" ({said})" if said else "")


def safe_id(id: str) -> str:
    """An id as it may be printed: people choose those of jobs that they submit."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", id)[:LONGEST]


def words(command: str) -> str:
    """The first words of a command, up to one that is neither plain nor a file; empty where the first is not.

    >>> words("/usr/bin/python3 -P -m shop.fit eu --password hunter"), words("TOKEN=abc fit.sh")
    ('shop.fit eu', '')
    >>> words('python -c "key = 1"'), words("fit.sh configs/load.yaml AKIA123 more")
    ('python', 'fit.sh load.yaml')
    """
    try:
        parts = shlex.split(command)
    except ValueError:
        parts = command.split()
    program, *others = _without_python(parts) or [""]
    if not PROGRAM.fullmatch(name := PurePath(program).name):
        return ""
    found = takewhile(bool, map(_harmless, others[: MOST_WORDS - 1]))
    return " ".join([name, *found])


def _without_python(parts: Sequence[str]) -> Sequence[str]:
    """A command without the interpreter, where that runs a script or a module."""
    if not parts or not PYTHON.fullmatch(PurePath(parts[0]).name):
        return parts
    for at, word in enumerate(parts[1:], 1):
        if word == "-m":
            return parts[at + 1 :]
        if not word.startswith("-"):
            return parts[at:]
        if word == "-c":
            break
    return ["python"]


def _harmless(word: str) -> str:
    """A word that is a subcommand, or the name of a file that is one; empty of all others."""
    if SUBCOMMAND.fullmatch(word):
        return word
    file = FILE.fullmatch(word)
    return file["name"] if file and not word.startswith("-") else ""


def is_of_another(name: str, model: str) -> bool:
    """Whether what runs is known to be another model's: its training, or replicas of it that are measured.

    >>> is_of_another("training load", "load"), is_of_another("training load", "churn")
    (False, True)
    >>> is_of_another("load.loadtest", "churn"), is_of_another("job fit.py", "churn")
    (True, False)
    """
    what, _, of = name.partition(" ")
    if of:
        return what == TRAINING and of != model
    of, is_aside, _ = name.partition(ASIDE)
    return bool(is_aside) and of != model


def in_words(name: str) -> str:
    """A name as people read it, beside those of models.

    >>> [in_words(name) for name in ("jobs", "load.loadtest", "training load")]
    ['other jobs', 'load test of load', 'training load']
    """
    of, is_aside, _ = name.partition(ASIDE)
    if name == JOBS:
        return "other jobs"
    return f"load test of {of}" if is_aside and " " not in name else name
