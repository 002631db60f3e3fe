"""What tests of tunings share: the command line on the tiny dataset, and the run that it makes."""

from collections.abc import Callable
from pathlib import Path

import yaml
from click.testing import CliRunner, Result

from training.cli import main
from training.run import Run

Train = Callable[..., Result]


def command_line(config: Path, data: Path, root: Path) -> Train:
    """A function that trains as `python -m training --print-run` does; its first argument is the `VAR` below `root`."""

    def train(var: str, *overrides: str) -> Result:
        arguments = ["train", "--config", config, "--data", data, "--var", root / var, "--print-run", *overrides]
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return train


def finished(result: Result) -> Run:
    """The run that a training has made."""
    assert result.exit_code == 0, result.output
    return Run.open(result.stdout.strip())


def without_interactions(config: Path) -> Path:
    """The config, changed in place to have no histories: where they do not matter, they take most of a training."""
    tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    del tree["sources"][0]["interactions"]
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return config
