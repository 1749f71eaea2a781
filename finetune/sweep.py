"""A search for the keys of a recipe that do best on its validation rows, by Optuna (Akiba et al. 2019)."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, OptunaError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from finetune.recipe import Recipe, SweepRange, load_recipe
from finetune.record import write_json
from finetune.training import finetune
from tasks.errors import DivergenceError, InterruptionError, ParitybitError, RecipeError

__all__ = ["SWEEP_FILE", "Sweep", "run_sweep", "to_table"]

SWEEP_FILE = "sweep.json"
_HEARTBEAT_S = 60
_RETRIES = 3
_SHOWN = 10
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)

Values = Mapping[str, str | float | int | bool]


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a search found.

    Attributes:
        metric: the task's primary metric, on validation rows.
        trials: how many came to an end, those that were given up early included.
        pruned: how many were given up early.
        best: the keys that did best, with their values.
        value: their metric.
        checkpoint: trained with them; None where another machine holds it.
        ranking: keys and metric of the best trials.
    """

    metric: str
    trials: int
    pruned: int
    best: Values
    value: float
    checkpoint: Path | None
    ranking: tuple[tuple[Values, float], ...]

    def to_json(self) -> dict[str, Any]:
        """For `sweep.json`."""
        return {
            "metric": self.metric,
            "trials": self.trials,
            "pruned": self.pruned,
            "best": dict(self.best),
            "value": self.value,
            "checkpoint": self.checkpoint and str(self.checkpoint),
            "ranking": [{"keys": dict(keys), "value": value} for keys, value in self.ranking],
        }


def run_sweep(
    recipe: Path,
    overrides: Sequence[str],
    output: Path,
    *,
    storage: str | None = None,
    report: Callable[[str], None],
) -> Sweep:
    """Trains as often as the recipe's `[sweep]` says and writes `sweep.json`.

    The same call goes on with a search that was interrupted; several machines share one through `storage`.

    Args:
        recipe: with a `[sweep]` section.
        overrides: as for `load_recipe`.
        output: directory of the search and of the best checkpoint.
        storage: SQLAlchemy URL of the trials; a SQLite file in `output` when None.
        report: takes a line for people after each trial.

    Raises:
        RecipeError: if the recipe has no `[sweep]` or its keys do not fit.
        InterruptionError: after Ctrl-C or SIGTERM; the training keeps its progress.
        ParitybitError: what a training raises, or if no trial came to its end.
    """
    base = load_recipe(recipe, overrides)
    if base.sweep is None:
        raise RecipeError(f"{recipe}: sweep: missing; expected a section with `trials` and `ranges`")
    output.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = _study(base, storage or f"sqlite:///{output.absolute()}/sweep.db")
    trials = _Trials(recipe, tuple(overrides), base.sweep.ranges, output, report)
    try:
        _search(study, trials, base.sweep.trials, report)
    except (SQLAlchemyError, OptunaError) as error:
        raise ParitybitError(f"storage: {_first_line(error)}") from None
    found = _sweep(study, base, trials)
    write_json(output / SWEEP_FILE, found.to_json())
    return found


def to_table(sweep: Sweep) -> str:
    """The best trials, as Markdown."""
    keys = list(sweep.best)
    lines = [f"| validation {sweep.metric} | {' | '.join(keys)} |", f"|{'---|' * (len(keys) + 1)}"]
    lines += [f"| {value:.4f} | {' | '.join(_toml(one[key]) for key in keys)} |" for one, value in sweep.ranking]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Trials:
    recipe: Path
    overrides: tuple[str, ...]
    ranges: Mapping[str, SweepRange]
    output: Path
    report: Callable[[str], None]

    def objective(self, trial: optuna.Trial) -> float:
        """The validation metric of a training with the values that a trial suggests."""
        values = {key: _suggested(trial, key, one) for key, one in self.ranges.items()}
        told = ", ".join(f"{key}={_toml(value)}" for key, value in values.items())
        seen = 0

        def watch(value: float) -> None:
            nonlocal seen
            trial.report(value, step=seen)
            seen += 1
            if trial.should_prune():
                raise optuna.TrialPruned

        place = self.place(values)
        try:
            settings = [f"{key}={_toml(value)}" for key, value in values.items()]
            chosen = load_recipe(self.recipe, [*self.overrides, *settings])
            metrics = finetune(chosen, place / "checkpoint", report=lambda line: None, watch=watch).metrics
        except (optuna.TrialPruned, DivergenceError, RecipeError) as error:
            shutil.rmtree(place, ignore_errors=True)
            self.report(f"{told}: given up{f': {error}' if str(error) else ''}")
            raise optuna.TrialPruned from None
        except InterruptionError:
            trial.study.enqueue_trial(trial.params)
            raise
        value: float = metrics["validation"][metrics["primary_metric"]]
        self.report(f"{told}: validation {metrics['primary_metric']} {value:.4f}")
        return value

    def place(self, values: Values) -> Path:
        """Where a training with these values keeps its progress, whatever the number of its trial."""
        return (
            self.output / "trials" / hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()[:16]
        )

    def keep_the_best(self, study: optuna.Study) -> None:
        """Removes all checkpoints but the best."""
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        kept = self.place(study.best_params) if finished else None
        for other in (self.output / "trials").glob("*"):
            if other != kept and (other / "checkpoint").is_dir():
                shutil.rmtree(other)


def _search(study: optuna.Study, trials: _Trials, wanted: int, report: Callable[[str], None]) -> None:
    # pruned ones count too; failed ones, whose machine was switched off, not
    while (left := wanted - len(study.get_trials(deepcopy=False, states=_ENDED))) > 0:
        study.optimize(trials.objective, n_trials=1)
        trials.keep_the_best(study)
        report(f"{left - 1} of {wanted} trials left")


def _study(recipe: Recipe, url: str) -> optuna.Study:
    try:
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            # a machine that is switched off in a trial leaves it to others
            retry = RetryHeartbeatStaleTrialCallback(max_retry=_RETRIES)
            storage = RDBStorage(url, heartbeat_interval=_HEARTBEAT_S, heartbeat_stale_trial_callback=retry)
        study = optuna.create_study(storage=storage, study_name=recipe.name, direction="maximize", load_if_exists=True)
    except (SQLAlchemyError, OptunaError, ImportError) as error:
        raise ParitybitError(f"storage: {url} cannot be opened: {_first_line(error)}") from None
    # else a search that goes on would draw again what it drew at first
    study.sampler = optuna.samplers.TPESampler(seed=recipe.seed + len(study.get_trials(deepcopy=False)))
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)
    return study


def _suggested(trial: optuna.Trial, key: str, one: SweepRange) -> str | float | int | bool:
    if one.choices is not None:
        chosen = trial.suggest_categorical(key, one.choices)
        assert chosen is not None
        return chosen
    assert one.low is not None and one.high is not None
    if isinstance(one.low, int) and isinstance(one.high, int):
        return trial.suggest_int(key, one.low, one.high, log=one.log)
    return trial.suggest_float(key, one.low, one.high, log=one.log)


def _sweep(study: optuna.Study, recipe: Recipe, trials: _Trials) -> Sweep:
    from tasks.catalogue import TASKS

    ended = study.get_trials(deepcopy=False, states=_ENDED)
    finished = [one for one in ended if one.state == TrialState.COMPLETE]
    if not finished:
        raise ParitybitError(f"sweep: all {len(ended)} trials were given up; see the reasons above")
    best = max(finished, key=_value)
    checkpoint = trials.place(best.params) / "checkpoint"
    ranking = sorted(finished, key=_value, reverse=True)[:_SHOWN]
    return Sweep(
        metric=TASKS[recipe.task].primary_metric,
        trials=len(ended),
        pruned=len(ended) - len(finished),
        best=best.params,
        value=_value(best),
        checkpoint=checkpoint if checkpoint.is_dir() else None,
        ranking=tuple((one.params, _value(one)) for one in ranking),
    )


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _toml(value: str | float | int | bool) -> str:
    # of these kinds, JSON writes what TOML reads
    return json.dumps(value)
