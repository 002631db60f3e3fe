"""Searches settings with Optuna: several processes on one study, which a kill at any moment leaves usable."""

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import click
import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from training.augmentation import prepare_dataset
from training.config import DomainConfig
from training.config_loading import change_config
from training.dataset import Dataset
from training.dataset_loading import load_dataset
from training.errors import DivergedError, TrainingError
from training.objective import objective
from training.plan import Plan, make_plan
from training.search_space import check_space, distributions, settings_of
from training.tracking import open_tracker
from training.tuning_folder import forget

Say = Callable[[str], None]
ATTEMPTS = 3  # how often a trial is begun whose process is killed; after that its settings count as failed
FIRST = "first"  # an attribute of a trial that is begun again: the number of its first attempt


@dataclass(frozen=True)
class Search:
    """What is searched, and the folder of the study. Vectors lie below `cached`: `var`, or a folder of the workers."""

    config: DomainConfig
    data: Path
    var: Path
    folder: Path
    cached: Path


@dataclass(frozen=True)
class TrialPlan(Plan):
    """A trial's plan: two trials may draw equal settings, so each keeps its checkpoints in a folder of its own.

    Nothing but vectors lies below its `var`.
    """

    trial_folder: Path

    @property
    def tuning_folder(self) -> Path:
        """The trial's own folder."""
        return self.trial_folder


def make_search(config: DomainConfig, data: Path, var: Path) -> Search:
    """Check the config's space and find the folder of its study: equal data, settings and space share one.

    Raises:
        ConfigError: A key or value of the space is wrong.
        DatasetError: No source is there.
        EncoderError: The encoder cannot be found.
    """
    check_space(config)
    others = {"sources", "export", "serving", "sla", "gates", "canary", "tracking", "search"}
    inputs = {
        "plan": make_plan(config, data, var).fingerprint,
        # The plan leaves out what has no effect without the settings that are searched.
        "config": config.model_dump(mode="json", exclude=others),
        "search": config.search.model_dump(mode="json", exclude={"trials"}),
    }
    fingerprint = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    return Search(config, data, var, var / "search" / config.domain / fingerprint[:16], cached=var)


def run_search(search: Search, workers: int, say: Say) -> optuna.Study:
    """Run the study's trials that are missing, in so many processes, and return the study.

    One worker repeats itself: the draws of a trial follow from the seed and the trials before it, also after a kill.

    Raises:
        TrainingError: The folder cannot be written, or a worker has stopped; the trials that are done stay.
    """
    try:
        search.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{search.folder}: cannot be written ({error.strerror}); check its rights") from None
    study = _open(search)
    with _at_work(search, lambda: _revive(study, say)):
        done = _counted(study)
        say(f"study {search.folder}: {done} of {search.config.search.trials} trials done")
        if workers == 1:
            _work(search, say)
        else:
            _start_workers(search, min(workers, search.config.search.trials - done))
    return study


def _start_workers(search: Search, workers: int) -> None:
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_worker, args=(search, workers), daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    codes = sorted({process.exitcode for process in processes if process.exitcode})
    if codes:
        signal = f"was killed by signal {-codes[0]}" if codes[0] < 0 else "has stopped with the error above"
        raise TrainingError(f"search: a worker {signal}; the trials that are done stay, run the command again to go on")


def _worker(search: Search, workers: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    threads = max(1, (os.cpu_count() or 1) // workers)
    torch.set_num_threads(threads)
    # With fewer threads vectors differ in their last bits: what a run is made of must not depend on a search.
    search = replace(search, cached=search.var / "cache" / f"threads-{threads}")
    try:
        with _at_work(search, lambda: None):
            _work(search, click.echo)
    except click.ClickException as error:
        error.show()
        raise SystemExit(1) from None


def _end_with_parent() -> None:
    """A killed search must not leave workers behind that nobody sees."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(search: Search, say: Say) -> None:
    """Run one trial after the other until none is missing."""
    dataset, study = load_dataset(search.config, search.data), _open(search)
    while (trial := _claim(search, study)) is not None:
        _run_trial(search, study, trial, dataset, say)


def _run_trial(search: Search, study: optuna.Study, trial: optuna.Trial, dataset: Dataset, say: Say) -> None:
    settings, started = search.config.search, time.monotonic()
    drawn = settings_of(settings.space, trial.params)
    config = change_config(search.config, drawn, where="search.space")
    number = trial.user_attrs.get(FIRST, trial.number)
    planned = make_plan(config, search.data, search.var)
    own = {"var": search.cached, "trial_folder": search.folder / "trials" / str(number)}
    plan = TrialPlan(**{**vars(planned), **own})
    value, state = None, TrialState.COMPLETE
    try:
        with open_tracker(planned, say, f"search-{search.folder.name[:8]}/trial-{number}") as tracker:
            callbacks = tracker.callbacks()
            if config.encoder_tuning.method != "frozen":
                from training.search_pruning import EpochReports  # noqa: PLC0415 - loads the Trainer

                callbacks = [*callbacks, EpochReports(trial, settings.metric)]
            learned_from, _ = prepare_dataset(plan, dataset, lambda _: None)
            value = objective(plan, learned_from, callbacks, tracker.head)
            tracker.result({settings.metric: value})
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    except DivergedError as error:
        state = TrialState.FAIL
        say(f"trial {trial.number}: {error.message}")
    study.tell(trial, value, state=state)
    forget(plan.tuning_folder)
    found = f"{settings.metric} {value:.4f}" if value is not None else state.name.lower()
    shown = " ".join(f"{key}={value}" for key, value in drawn.items())
    say(f"trial {trial.number}: {found}, {time.monotonic() - started:.0f} s, {shown}")


def _claim(search: Search, study: optuna.Study) -> optuna.Trial | None:
    """The next trial with its settings drawn, None if no more are missing; one process at a time."""
    settings = search.config.search
    with _locked(search.folder / "claim.lock"):
        counted = _counted(study)
        if counted >= settings.trials:
            return None
        # A sampler for each trial: its draws depend on how many came before, not on how often the search was begun, and
        # no two workers draw alike.
        seed = int(np.random.SeedSequence([settings.seed, counted]).generate_state(1)[0])
        study.sampler = optuna.samplers.TPESampler(seed=seed)
        return study.ask(distributions(settings.space))


def _counted(study: optuna.Study) -> int:
    """How many trials are done or under way; one that is begun again counts once."""
    return sum(trial.state != TrialState.WAITING for trial in _latest(study.get_trials(deepcopy=False)).values())


def _latest(trials: list[FrozenTrial]) -> dict[int, FrozenTrial]:
    """The last attempt at each trial, by the number of the first."""
    return {trial.user_attrs.get(FIRST, trial.number): trial for trial in trials}


def _revive(study: optuna.Study, say: Say) -> None:
    """Put the trials whose process is gone back into the queue; only while nobody works on the study."""
    trials = study.get_trials(deepcopy=False)
    latest = _latest(trials)
    for trial in trials:
        if trial.state != TrialState.RUNNING:
            continue
        first = trial.user_attrs.get(FIRST, trial.number)
        attempts = sum(other.user_attrs.get(FIRST, other.number) == first for other in trials)
        # First the new attempt, then the end of the old one: a kill in between loses nothing, and adds none either.
        if latest[first].number == trial.number and attempts < ATTEMPTS:
            study.enqueue_trial(trial.params, user_attrs={FIRST: first})
        study.tell(trial.number, state=TrialState.FAIL)
        again = "begun again" if attempts < ATTEMPTS else f"given up after {ATTEMPTS} attempts"
        say(f"trial {trial.number} was cut off; {again}")


def _open(search: Search) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = search.config.search
    # The median waits for four trials, and lets each have its first epoch, most of which may be warm-up.
    pruners: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(max_resource=search.config.encoder_tuning.epochs),
        "none": optuna.pruners.NopPruner,
    }
    with _locked(search.folder / "claim.lock"):  # two processes must not create the tables at once
        # A rollback journal, so that a kill in the middle of a write undoes it. `timeout` is how long to wait for
        # another process's write, in seconds.
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{search.folder / 'study.sqlite3'}", engine_kwargs={"connect_args": {"timeout": 60}}
        )
        return optuna.create_study(
            storage=storage,
            study_name=search.config.domain,
            direction=settings.direction,
            pruner=pruners[settings.pruner](),
            load_if_exists=True,
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[TextIO]:
    """Hold the file's lock; the system gives it back when the process ends, however it ends."""
    with path.open("a", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream


@contextlib.contextmanager
def _at_work(search: Search, if_alone: Callable[[], None]) -> Iterator[None]:
    """Be one of those at work on the study; `if_alone` is called first where nobody else is."""
    with (search.folder / "work.lock").open("a", encoding="utf-8") as stream:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if_alone()  # under this lock nobody can join
        fcntl.flock(stream, fcntl.LOCK_SH)
        yield
