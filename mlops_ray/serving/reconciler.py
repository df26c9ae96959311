"""The process that reconciles a storage: one deployment of Serve without a route.

Of several such processes one works, and the others wait for its end.
"""

import threading
from functools import lru_cache
from typing import IO, ClassVar

from ray import serve

from mlops_ray.data import error_log
from mlops_ray.policy import placed
from mlops_ray.serving import record
from mlops_ray.serving.reconcile import Reconciler, Registry
from mlops_ray.serving.verify import Verifier
from mlops_ray.storage import Storage, locked

#: The Serve application and its deployment, and how soon a dead one is noticed.
APPLICATION, HEALTH_CHECK_S = "reconciler", 1.0
#: How often wishes are looked for.
POLL_S = 0.1


class Single:
    """A process that does a `_work` on a storage for as long as it lives, while no other does."""

    #: Where the right to it lies, in the storage, and what the error log calls it.
    LOCK: ClassVar[tuple[str, str]]
    PROCESS: ClassVar[str]

    def __init__(self, storage_root: str) -> None:
        self._storage = Storage.open(storage_root)
        error_log.install(self._storage, self.PROCESS)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """What Serve asks; raises where the work has ended."""
        if not self._thread.is_alive():
            raise RuntimeError(f"{type(self).__name__} has ended")

    def _run(self) -> None:
        while (mine := locked(self._storage.path(*self.LOCK))) is None:
            if self._ended.wait(POLL_S):
                return
        with mine:
            self._work()

    def _work(self) -> None:
        """Goes on until `_ended`."""
        raise NotImplementedError

    def __del__(self) -> None:
        self._ended.set()


class Reconciling(Single):
    """The process that reconciles a storage for as long as it lives."""

    LOCK, PROCESS = (record.FOLDER, ".reconciler.lock"), "reconciler"

    def _run(self) -> None:
        # MLflow's import takes seconds, in which a rollback is not to wait.
        threading.Thread(target=_registry, args=("",), daemon=True).start()
        super()._run()

    def _work(self) -> None:
        reconciler = Reconciler(self._storage, _registry, Verifier())
        while not self._ended.wait(POLL_S):
            reconciler.tick()
        reconciler.close()


@lru_cache
def _registry(tracking: str) -> Registry:
    from mlops_ray.registry.registry import Registry as OfMlflow

    return OfMlflow(tracking)


def deployment(storage_root: str, label_selector: dict[str, str]) -> serve.Application:
    """The reconciler's application; it has no route, and one replica."""
    return single(Reconciling, "Reconciler", storage_root, label_selector, HEALTH_CHECK_S)


def single(
    process: type[Single], name: str, storage_root: str, label_selector: dict[str, str], health_check_s: float
) -> serve.Application:
    """The application of a process; it has no route, and one replica, which needs no CPU of its own."""
    made = serve.deployment(
        name=name,
        num_replicas=1,
        ray_actor_options=placed(label_selector, num_cpus=0),
        health_check_period_s=health_check_s,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )(process)
    return made.bind(storage_root)


def lock(storage: Storage) -> IO[str] | None:
    """The right to reconcile a storage, for as long as the file is open; `None` where another has it."""
    return locked(storage.path(*Reconciling.LOCK))
