"""The same trials are suggested and stopped, in whatever order they end, and after a restart."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from mlops_ray.config.project import Search as Config
from mlops_ray.errors import TrainingError
from mlops_ray.training.leaderboard import Trial, mean
from mlops_ray.training.search import Halving, Search, Suggestion
from mlops_ray.training.space import Between, OneOf, Space

FOLDS = 3
SPACES: dict[str, Space] = {
    "ridge": {"alpha": Between(0.01, 100.0, 1.0, log=True)},
    "forest": {"trees": Between(1, 50, 10), "kind": OneOf(("a", "b"))},
}


def _scores(made: Suggestion) -> list[float]:
    """What a trial scores, from what it tries alone."""
    value = (
        made.params["alpha"] if made.family == "ridge" else made.params["trees"] + len(made.params["kind"])
    )
    return [abs(float(value) - 7) + fold for fold in range(FOLDS)]


def _table(
    seed: int,
    at_once: int,
    *,
    stop_at: int | None = None,
    known: dict[int, Trial] | None = None,
    **given: Any,
) -> tuple[list[Trial], dict[int, Trial]]:
    """A search whose trials end in an order that `seed` shuffles: its table, and the trials as they ended.

    With `stop_at` it is killed when so many have ended.
    """
    order, table, raw = random.Random(seed), list[Trial](), dict(known or {})
    config = Config.model_validate({"trials": 40, "seed": 3, **given})
    search = Search(SPACES, config, folds=FOLDS, loss=float, on_settled=table.append, known=known)
    running: dict[int, tuple[Suggestion, list[float]]] = {}
    while not search.is_over and (stop_at is None or len(raw) < stop_at):
        while len(running) < at_once and (made := search.ask()) is not None:
            running[made.number] = (made, [])
        if not running:
            break
        number = order.choice(list(running))
        made, so_far = running[number]
        so_far.append(_scores(made)[len(so_far)])
        stopped = len(so_far) < FOLDS and search.is_stopped(number, so_far)
        if stopped or len(so_far) == FOLDS:
            del running[number]
            state: Any = "stopped" if stopped else "complete"
            ended = Trial(
                f"{number:04d}", made.family, made.params, mean(so_far), tuple(so_far), order.random(), state
            )
            raw[number] = ended
            search.end(number, ended)
    return table, raw


def _without_seconds(table: Sequence[Trial]) -> list[Any]:
    return [(t.id, t.family, dict(t.params), t.fold_scores, t.state) for t in table]


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
@pytest.mark.parametrize("scheduler", ["asha", "none"])
def test_the_table_is_the_same_however_many_run_at_once_and_in_whatever_order_they_end(
    algorithm: str, scheduler: str
) -> None:
    given = {"algorithm": algorithm, "scheduler": scheduler}
    one_by_one, _ = _table(0, 1, **given)
    assert len(one_by_one) == 40
    for seed, at_once in enumerate((2, 2, 2, 3, 8, 40)):
        assert _without_seconds(_table(seed, at_once, **given)[0]) == _without_seconds(one_by_one)
    states = {trial.state for trial in one_by_one}
    assert states == ({"complete", "stopped"} if scheduler == "asha" else {"complete"})


@pytest.mark.parametrize("stop_at", [0, 1, 7, 25, 39, 40])
def test_a_search_that_was_killed_goes_on_to_the_same_table(stop_at: int) -> None:
    whole, _ = _table(0, 2)
    _, known = _table(1, 3, stop_at=stop_at)
    again, _ = _table(2, 2, known=known)
    assert _without_seconds(again) == _without_seconds(whole)


def test_the_sampler_learns_from_what_it_is_told() -> None:
    learned, drawn = (_table(0, 2, algorithm=name, scheduler="none")[0] for name in ("tpe", "random"))
    late = [mean([trial.score for trial in table[20:]]) for table in (learned, drawn)]
    assert late[0] < late[1] / 2


def test_what_a_restart_finds_must_be_what_it_would_try() -> None:
    _, known = _table(0, 1, stop_at=3)
    other = {**known, 2: Trial("0002", "ridge", {"alpha": 77.0}, 1.0, (1.0,) * FOLDS, 0.0, "complete")}
    with pytest.raises(TrainingError, match="a library has changed"):
        _table(0, 1, known=other)


def test_a_trial_that_is_to_be_stopped_counts_no_further_however_far_it_ran() -> None:
    halving = Halving(FOLDS, float)
    for number in (0, 1):
        halving.report(number, [1.0, 1.0, 1.0], ended=True)
    # The trial before the last has not got so far: nothing can be said of the last.
    halving.report(4, [9.0, 9.0])
    assert halving.stopped_after(4) is None
    halving.report(2, [1.0])
    halving.report(3, [1.0])
    assert halving.stopped_after(4) == 1


def test_the_best_third_goes_on() -> None:
    halving = Halving(10, float)
    for number in range(30):
        halving.report(number, [float(number % 10)] * 10, ended=True)
    stopped = {number % 10: halving.stopped_after(number) for number in range(20, 30)}
    assert stopped[0] is None
    # The best third of all, of whom the best third goes further.
    assert {score for score, folds in stopped.items() if folds != 1} == {0, 1, 2}
    assert {stopped[1], stopped[2]} == {3}


@pytest.mark.parametrize("loss", [float, lambda score: -score])
def test_what_is_better_goes_on_whichever_way_is_better(loss: Callable[[float], float]) -> None:
    halving = Halving(FOLDS, loss)
    for number, score in enumerate([0.5, 0.5, 0.5, 0.1, 0.9]):
        halving.report(number, [score] * FOLDS, ended=True)
    assert halving.stopped_after(3 if loss(1.0) < 0 else 4) == 1
    assert halving.stopped_after(4 if loss(1.0) < 0 else 3) is None


def test_a_failed_trial_is_no_measure_for_others() -> None:
    halving = Halving(FOLDS, float)
    halving.report(0, [], ended=True)
    halving.report(1, [1.0, 1.0, 1.0], ended=True)
    halving.report(2, [5.0])
    assert halving.stopped_after(2) is None


def test_what_was_cut_off_is_not_in_the_table_and_holds_nothing_up() -> None:
    table: list[Trial] = []
    search = Search(SPACES, Config(trials=8), folds=FOLDS, loss=float, on_settled=table.append)
    asked = [search.ask() for _ in range(3)]
    last = asked[2]
    assert last is not None
    search.end(2, Trial("0002", last.family, last.params, 1.0, (1.0,) * FOLDS, 0.0, "complete"))
    assert table == []
    search.close()
    assert [trial.id for trial in table] == ["0002"]


def test_what_did_best_before_is_tried_after_the_defaults() -> None:
    start = [("forest", {"trees": 20, "kind": "b"}), ("forest", {"trees": 99}), ("ridge", {"alpha": 2.0})]
    search = Search(
        SPACES, Config(trials=8), folds=FOLDS, loss=float, on_settled=lambda trial: None, start=start
    )
    tried = [(made.family, dict(made.params)) for made in (search.ask() for _ in range(4)) if made]
    assert tried == [
        ("ridge", {"alpha": 1.0}),
        ("forest", {"trees": 10, "kind": "a"}),
        ("forest", {"trees": 20, "kind": "b"}),
        ("ridge", {"alpha": 2.0}),
    ]


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_what_is_known_is_all_that_there_is_where_nothing_more_is_tried(algorithm: str) -> None:
    """Also trials beyond one that had not ended at the kill."""
    _, known = _table(1, 3, stop_at=12, algorithm=algorithm)
    known.pop(5)
    table = list[Trial]()
    config = Config.model_validate({"trials": 40, "seed": 3, "algorithm": algorithm})
    search = Search(SPACES, config, folds=FOLDS, loss=float, on_settled=table.append, known=known)
    search.recall()
    assert not search.is_over
    search.close()
    assert [int(trial.id) for trial in table] == sorted(known)
