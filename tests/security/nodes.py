"""Nodes beside the head of a local cluster, each with folders, an environment and labels of its own."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from mlops_ray.cluster import local
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.policy import HERE, REGION

#: Ray takes nodes on addresses of loopback for none of several machines.
START = """
from ray._private import ray_constants, services
from ray.scripts.scripts import main
ray_constants.ENABLE_RAY_CLUSTER = True
services.resolve_ip_for_localhost = lambda host: host
main()
"""
#: Memory is read in pieces of so many bytes.
PIECE_BYTES = 1 << 24


@dataclass(frozen=True)
class Node:
    """A node: its address, the region that it says, and the folder of all that it writes."""

    address: str
    region: str | None
    folder: Path

    @property
    def processes(self) -> list[psutil.Process]:
        """Those that were started with its environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HOME") == str(self.folder):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def remembers(self, canaries: list[bytes]) -> list[int]:
        """The ids of processes in whose own memory a canary stands."""
        return [process.pid for process in self.processes if any(_has(p, canaries) for p in _memory(process))]


def add(cluster: LocalCluster, address: str, region: str | None, *, cpus: int) -> Node:
    """A node of the cluster, which ends with it; it may take some seconds to join."""
    folder = Path(cluster.temp_dir, f"node-{address}")
    spilled, temporary = folder / "spilled", folder / "tmp"
    for made in (spilled, temporary):
        made.mkdir(parents=True)
    inherited = {name: value for name, value in os.environ.items() if name != HERE}
    own = {"HOME": str(folder), "TMPDIR": str(temporary), local.MARKER: cluster.marker}
    options = {
        "address": cluster.address,
        "node-ip-address": address,
        "temp-dir": folder / "r",
        "object-spilling-directory": spilled,
        "object-store-memory": 100_000_000,
        "num-cpus": cpus,
        "num-gpus": 0,
        "min-worker-port": 0,
        "max-worker-port": 0,
        **({"labels": f"{REGION}={region}"} if region else {}),
    }
    with (folder / "node.log").open("wb") as log:
        subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-c",
                START,
                "start",
                "--block",
                *(f"--{k}={v}" for k, v in options.items()),
            ],
            env=inherited | cluster.environment | own | ({HERE: region} if region else {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Node(address, region, folder)


def stored(pid: int, canaries: list[bytes]) -> bool:
    """Whether a canary stands in the object store that a raylet holds; it has no name any more."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if "plasma" in os.readlink(link):
            with link.open("rb", buffering=0) as file:
                if any(_has(piece, canaries) for piece in _written(file.fileno())):
                    return True
    return False


def _written(file: int) -> Iterator[bytes]:
    """What was written of a file that is mostly holes."""
    end = 0
    while True:
        try:
            begin = os.lseek(file, end, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(file, begin, os.SEEK_HOLE)
        for at in range(begin, end, PIECE_BYTES):
            yield os.pread(file, min(PIECE_BYTES, end - at), at)


def _memory(process: psutil.Process) -> Iterator[bytes]:
    """What a process keeps for itself, piece by piece."""
    # A worker that nobody needs may end meanwhile.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        mappings = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        with Path(f"/proc/{process.pid}/mem").open("rb", buffering=0) as memory:
            for said in filter(None, (re.match(r"(\w+)-(\w+) rw-p", line) for line in mappings)):
                begin, end = (int(number, 16) for number in said.groups())
                for at in range(begin, end, PIECE_BYTES):
                    yield os.pread(memory.fileno(), min(PIECE_BYTES, end - at), at)


def _has(data: bytes, canaries: list[bytes]) -> bool:
    return any(canary in data for canary in canaries)
