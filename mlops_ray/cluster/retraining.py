"""What the job of a retraining runs: `python -m mlops_ray.cluster.retraining PROJECT.yaml ID STORAGE`.

All that `run` does up to the push; what has not changed is not done again. What it is about, and how it
ended, stands in `loop/jobs/ID.json`, from where the loop takes it up. A job of one id begins once.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_ray import config
from mlops_ray.cluster import joined
from mlops_ray.data import error_log
from mlops_ray.errors import ConfigError, MlopsError, safe
from mlops_ray.expressions import SEARCH_PATH
from mlops_ray.storage import Storage

#: The nice value of the loop and its jobs, as of trials (training.trial): who answers goes first.
GIVES_WAY = 15


@dataclass
class Told:
    """Progress of a run, for the loop and for the job's log."""

    storage: Storage
    id: str
    stage: str = ""

    def begin(self, stage: str) -> None:
        self.stage = stage
        self.say(said=stage)

    def update(self, message: str) -> None:
        self.say(said=f"{self.stage}: {message}")

    def end(self, stage: str, message: str, seconds: float | None) -> None:
        took = "unchanged" if seconds is None else f"{seconds:.1f} s"
        sys.stdout.write(f"{stage}: {took}, {message}\n")
        sys.stdout.flush()

    def say(self, **what: Any) -> None:
        """Has the loop know this."""
        from mlops_ray.cluster.loop import JOBS

        self.storage.write_json(what, JOBS, f"{self.id}.json")


def run(file: Path, id: str, storage: Storage) -> int:
    """The exit status of a job; what came of it, as JSON, is where the loop looks for it.

    That is `{"outcome", "version", "said"}`, the outcome a state of `loop.Retraining`.
    """
    # Functions that the file names may stand beside it.
    os.environ[SEARCH_PATH] = str(file.parent)
    joined.settle()
    from mlops_ray.cluster import loop, service

    told = Told(storage, id)
    try:
        loop.begun(storage, id).touch(exist_ok=False)
    except FileExistsError:
        sys.stdout.write(f"{id} has begun before, and begins once\n")
        return 0
    name = ""
    try:
        project = config.load(file)
        name = project.project
        going = loop.under_way(loop.retrainings(loop.read(storage, project.project)))
        if going is None or going.id != id:
            raise ConfigError(
                f"{project.project} is not the model that is to be trained again", file=str(file)
            )
        told.say(**service.retrained(project, storage, told))
    except MlopsError as error:
        # Who reads it later need not be who may see rows.
        said = safe(error)
        error_log.tell(storage, name, "retraining", error)
        told.say(outcome="failed", version=None, said=said)
        sys.stdout.write(f"error: {said}\n")
        return error.exit_status
    except Exception as error:
        error_log.tell(storage, name, "retraining", error)
        told.say(outcome="failed", version=None, said=f"{type(error).__name__}, see the job's log")
        raise
    return 0


if __name__ == "__main__":
    os.nice(GIVES_WAY)
    sys.exit(run(Path(sys.argv[1]), sys.argv[2], Storage.open(sys.argv[3])))
