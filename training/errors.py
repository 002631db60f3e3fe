"""The errors of training.

TrainingError            (a click.ClickException: the command line prints one line and exits with 1)
├── ConfigError          the domain's YAML or an override is wrong
├── DatasetError         a dataset file, row or cell is wrong
├── DivergedError        a loss is not finite
├── EncoderError         the encoder cannot be found, or is not what the config says
└── RunError             a run folder is missing, incomplete or damaged
"""

import click


class TrainingError(click.ClickException):
    """What every error of training derives from; its message is one line that says what to do."""


class ConfigError(TrainingError):
    """The domain's YAML, or an override given on the command line, is wrong."""


class DatasetError(TrainingError):
    """A dataset file cannot be read, or a row of it breaks the contract of docs/datasets.md."""


class DivergedError(TrainingError):
    """A loss is not finite: these settings cannot be tuned with."""


class EncoderError(TrainingError):
    """The encoder cannot be found or loaded, or differs from what the config promises."""


class RunError(TrainingError):
    """A run folder is missing, incomplete or damaged."""
