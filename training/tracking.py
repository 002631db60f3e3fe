"""Writes the curves of a tuning where people can watch them: TensorBoard, Weights & Biases, or nowhere.

Only numbers and settings are tracked, never texts or ids. Nothing of it enters a run.
"""

import contextlib
import netrc
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from training import processes
from training.errors import TrainingError
from training.optional_packages import is_installed, require
from training.plan import Plan

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
    from transformers import TrainerCallback

    from training.head import HeadEpoch

Say = Callable[[str], None]


class Tracker:
    """Where the curves of one tuning go. This one drops them."""

    def callbacks(self) -> "list[TrainerCallback]":
        """What tracks the encoder's tuning, for its Trainer."""
        return []

    def head(self, epoch: "HeadEpoch") -> None:
        """Track one epoch of a head; it is given to `training.head.tune_head`."""

    def result(self, metrics: Mapping[str, Any]) -> None:
        """Track the numbers of the nested final metrics."""

    def close(self) -> None:
        """Write what is not written yet."""


class TensorBoardTracker(Tracker):
    """Writes TensorBoard's event files; `encoder`, `head` and `result` are runs of their own there."""

    def __init__(self, folder: Path) -> None:
        """Write under `folder`."""
        self._folder = folder
        self._writers: dict[str, SummaryWriter] = {}

    def callbacks(self) -> "list[TrainerCallback]":
        """TensorBoard's own callback."""
        from training.tracking_callbacks import TensorBoardCurves  # noqa: PLC0415 - loads the Trainer

        return [TensorBoardCurves(self._folder / "encoder")]

    def head(self, epoch: "HeadEpoch") -> None:
        """Two curves for each head that is tried."""
        for name, loss in _losses(epoch).items():
            self._writer("head").add_scalar(f"{name}/{epoch.head}", loss, epoch.epoch)

    def result(self, metrics: Mapping[str, Any]) -> None:
        """One point for each number."""
        for name, value in numbers(metrics).items():
            self._writer("result").add_scalar(name, value, 0)

    def close(self) -> None:
        """Flush and close the files."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, part: str) -> "SummaryWriter":
        if part not in self._writers:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - only where something is tracked

            # An earlier try of the same tuning may have written here: TensorBoard forgets its points from step 0 on.
            self._writers[part] = SummaryWriter(str(self._folder / part), purge_step=0)
        return self._writers[part]


class WandbTracker(Tracker):
    """Writes a run of Weights & Biases; offline, it is a file that `wandb sync` can send later."""

    def __init__(self, folder: Path, plan: Plan, name: str) -> None:
        """Start a run under `folder`.

        Raises:
            TrainingError: It cannot be started.
        """
        _confine(plan.var.resolve() / "cache" / "wandb")
        import wandb  # noqa: PLC0415 - only where it is asked for

        settings, config = plan.config.tracking, plan.config
        if settings.mode == "online" and not _has_key():
            raise TrainingError("tracking.mode is online, but there is no key; set WANDB_API_KEY, or run `wandb login`")
        try:
            self._run = wandb.init(
                project=settings.project,
                name=name,
                group=config.domain,
                dir=folder.resolve(),
                mode=settings.mode,
                config={
                    "domain": config.domain,
                    "fingerprint": plan.fingerprint,
                    "training": config.training.model_dump(mode="json"),
                    "encoder_tuning": config.encoder_tuning.model_dump(mode="json"),
                },
                # Numbers alone: no console output, no command line, no host, no code, no git state.
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    host="hidden",
                    save_code=False,
                    disable_code=True,
                    disable_git=True,
                    x_disable_meta=True,
                    x_disable_stats=True,
                    x_disable_machine_info=True,
                ),
            )
        except wandb.errors.Error as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise TrainingError(
                f"tracking: Weights & Biases cannot be used ({reason}); set tracking.mode=offline"
            ) from None
        for part, step in (("train", "train/global_step"), ("eval", "train/global_step"), ("head", "head/epoch")):
            self._run.define_metric(f"{part}/*", step_metric=step)

    def callbacks(self) -> "list[TrainerCallback]":
        """W&B's own callback."""
        from training.tracking_callbacks import WandbCurves  # noqa: PLC0415 - loads the Trainer

        return [WandbCurves()]

    def head(self, epoch: "HeadEpoch") -> None:
        """Two curves for each head that is tried."""
        points = {f"head/{name}/{epoch.head}": value for name, value in _losses(epoch).items()}
        self._run.log({**points, "head/epoch": epoch.epoch})

    def result(self, metrics: Mapping[str, Any]) -> None:
        """The run's summary."""
        self._run.summary.update({f"result/{name}": value for name, value in numbers(metrics).items()})

    def close(self) -> None:
        """End the run."""
        self._run.finish()


@contextlib.contextmanager
def open_tracker(plan: Plan, say: Say, name: str | None = None) -> Iterator[Tracker]:
    """The tracker that the plan's config asks for, closed at the end.

    It writes to `VAR/logs/tracking/<domain>/<name>`; the name is that of the plan's fingerprint if none is given, with
    which the run's id ends too.

    Raises:
        TrainingError: The package that the config names is not installed, or the folder cannot be written.
    """
    name = name or plan.fingerprint[:8]
    tracker = _tracker(plan, say, name)
    try:
        yield tracker
    finally:
        tracker.close()


def tracking_folder(plan: Plan) -> Path:
    """Where the tunings of the plan's domain are tracked."""
    return plan.var / "logs" / "tracking" / plan.config.domain


def numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested metrics by their path: `test/labels/top1_accuracy`."""
    found: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            found.update(numbers(value, f"{prefix}{key}/"))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{key}"] = float(value)
    return found


def _losses(epoch: "HeadEpoch") -> dict[str, float]:
    return {"training_loss": epoch.training_loss, "validation_loss": epoch.validation_loss}


def _tracker(plan: Plan, say: Say, name: str) -> Tracker:
    settings = plan.config.tracking
    if settings.backend == "none" or not processes.is_main():  # of several that tune together, one tracks
        return Tracker()
    if settings.backend == "tensorboard" and "backend" not in settings.model_fields_set:
        # The default: whoever has not asked for it can do without.
        if not is_installed("tensorboard"):
            say("nothing is tracked: tensorboard is not installed (pip install 'instructrec[tracking]')")
            return Tracker()
    else:
        require(settings.backend, {"tensorboard": "tracking"}.get(settings.backend, settings.backend))
    folder = tracking_folder(plan) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        advice = "check its rights, or set tracking.backend=none"
        raise TrainingError(f"{folder}: cannot be written ({error.strerror}); {advice}") from None
    return WandbTracker(folder, plan, name) if settings.backend == "wandb" else TensorBoardTracker(folder)


def _confine(folder: Path) -> None:
    """Let wandb keep its own files under `folder`, not in the home directory, and report no errors to its makers."""
    for variable in ("CACHE", "CONFIG", "DATA"):
        os.environ.setdefault(f"WANDB_{variable}_DIR", str(folder))
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


def _has_key() -> bool:
    """Whether there is a key, in the environment or in the file that `wandb login` writes; wandb would ask for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
