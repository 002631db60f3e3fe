"""Finds a run that the config names, and its encoder as the start of another."""

from pathlib import Path

from training.config import EncoderConfig
from training.encoder_source import EncoderSource, weights_sha256
from training.errors import RunError
from training.run import Run


def encoder_of_run(init_from: str, runs: Path, config: EncoderConfig) -> tuple[EncoderSource, EncoderConfig]:
    """The encoder of the run `init_from` (a folder, or an id below `runs`), and `config` as it is used with it.

    The pooling belongs to the weights: the run's is taken, and one that the config sets must be the same. The length
    belongs to the domain's texts: the config's `max_length` counts where it sets one, else the run's. Its `sha256` is
    that of the encoder `name`, which is not used, and is not checked.

    Raises:
        RunError: There is no such run, it is damaged, or it pools differently.
    """
    run = open_intact_run(init_from, runs, "init_from")
    record, where = run.manifest.encoder, f"init_from: run {run.run_id}"
    given = config.model_fields_set
    if "pooling" in given and config.pooling != record.pooling:
        raise RunError(
            f"{where} pools its encoder with {record.pooling!r}, encoder.pooling says {config.pooling!r}; "
            f"set encoder.pooling={record.pooling}, or leave it out"
        )
    length = config.max_length if "max_length" in given else record.max_length
    used = config.model_copy(update={"pooling": record.pooling, "max_length": length})
    return run.encoder, used


def open_intact_run(name: str, runs: Path, key: str) -> Run:
    """Open the run that the config's `key` names, as `open_run` does, and make sure that its encoder is its own.

    Raises:
        RunError: There is no such run, or it is damaged.
    """
    run = open_run(name, runs, key)
    if weights_sha256(run.path / "encoder") != run.manifest.encoder.sha256:
        raise RunError(
            f"{key}: run {run.run_id} is damaged: its encoder is not the one that was written; name another run"
        )
    return run


def open_run(name: str, runs: Path, key: str) -> Run:
    """Open the run that the config's `key` names: a folder, or the id of a run below `runs`.

    Raises:
        RunError: There is no such run, or it is damaged.
    """
    by_id = [folder / name for folder in sorted(runs.glob("*")) if Path(name).name == name]
    for path in (Path(name), *by_id):
        if path.is_dir():
            try:
                return Run.open(path)
            except RunError as error:
                raise RunError(f"{key}: {error.message}") from None
    raise RunError(f"{key}: {name} is neither the folder of a run nor the id of one under {runs}")


def named_run(name: str, runs: Path, domain: str) -> Run:
    """The run that a command's `--run` names: a folder, or the id of a run below `runs`.

    Raises:
        RunError: There is no such run, it is damaged, or it is of another domain.
    """
    run = open_run(name, runs, "--run, RUN=")
    if run.domain != domain:
        raise RunError(
            f"--run, RUN=: {run.path} is a run of {run.domain}, the config is of {domain}; name its own config"
        )
    return run
