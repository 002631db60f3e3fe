"""What a verification measured, against which bars."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, computed_field

from export.speed import SpeedRatio
from export.task import TaskComparison

__all__ = [
    "FP16_BUDGET",
    "FP32_BUDGET",
    "INT8_BUDGET",
    "LOSS_DIGITS",
    "Check",
    "VerificationBudget",
    "VerificationReport",
]

LOSS_DIGITS = 9
"""Of a loss and its bar: three lost of sixty are 0.05 to all digits but the last."""
_SIGNIFICANCE = 0.05


class VerificationBudget(BaseModel):
    """How far a graph may be from torch.

    Attributes:
        mean_cosine: Least mean cosine over the texts.
        min_cosine: Least cosine of any text.
        shape_cosine: Least cosine of any row at any (batch, length): texts cut short and joined to full length too.
        max_absolute: Greatest difference of any component of any vector.
        label_agreement: Least share of texts whose best label is the same.
        top_k: How many items the overlap compares.
        top_k_overlap: Least mean share of the best `top_k` items in common.
        task_loss: Greatest loss of the head's accuracy and of NDCG@10 on the run's own instructions, as a share of 1;
            see `task_bar` for sets too small to measure it.
        invariance: Greatest difference that batch neighbours or padding may make to any component.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean_cosine: float
    min_cosine: float
    shape_cosine: float
    max_absolute: float
    label_agreement: float
    top_k: int = 10
    top_k_overlap: float
    task_loss: float
    invariance: float = 1e-5

    def task_bar(self, measured: TaskComparison) -> float:
        """The greatest loss of a metric of the task that passes on a set of this size.

        It is `task_loss`, unless one or two lost answers are more than that and show nothing: a graph that loses just
        `task_loss` in the long run would lose as many by chance (one-sided binomial test), and the 95 % interval of the
        difference still holds the budget.

        Args:
            measured: The metric, of torch and the graph.
        """
        if measured.high < -self.task_loss:
            return self.task_loss
        count, none_lost = measured.instructions, (1 - self.task_loss) ** measured.instructions
        one_lost = count * self.task_loss * (1 - self.task_loss) ** (count - 1)
        chances = {1: 1 - none_lost, 2: 1 - none_lost - one_lost}  # of at least as many lost answers
        explained = [answers / count for answers, chance in chances.items() if chance >= _SIGNIFICANCE]
        return round(max([self.task_loss, *explained]), LOSS_DIGITS)


FP32_BUDGET = VerificationBudget(
    mean_cosine=0.99999,
    min_cosine=0.99999,
    shape_cosine=0.99999,
    max_absolute=1e-4,
    label_agreement=0.999,
    top_k_overlap=0.999,
    task_loss=0.001,
)
FP16_BUDGET = VerificationBudget(
    mean_cosine=0.9999,
    min_cosine=0.9999,
    shape_cosine=0.9999,
    max_absolute=5e-3,
    label_agreement=0.99,
    top_k_overlap=0.98,
    invariance=5e-4,
    task_loss=0.001,
)
INT8_BUDGET = VerificationBudget(
    mean_cosine=0.998,
    min_cosine=0.99,
    shape_cosine=0.98,
    max_absolute=0.06,
    label_agreement=0.95,
    top_k_overlap=0.95,
    task_loss=0.005,
)


class Check(BaseModel):
    """One measured value against its bar. `release` is where it was measured, if that was an earlier one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    measured: float
    relation: Literal["at least", "at most"]
    bar: float
    passed: bool
    release: int | None = None

    @property
    def where(self) -> str:
        """What a table says of where it was measured."""
        return "" if self.release is None else f" (release {self.release})"

    @classmethod
    def at_least(cls, name: str, measured: float, bar: float) -> Check:
        """A check that a value reaches its bar."""
        return cls(name=name, measured=measured, relation="at least", bar=bar, passed=bool(measured >= bar))

    @classmethod
    def at_most(cls, name: str, measured: float, bar: float) -> Check:
        """A check that a value stays within its bar."""
        return cls(name=name, measured=measured, relation="at most", bar=bar, passed=bool(measured <= bar))


class VerificationReport(BaseModel):
    """Every check of one graph.

    Attributes:
        graph: The graph's file name.
        texts: How many texts were compared.
        shapes: The (batch, length) shapes that were run.
        checks: The checks, in the order they were made.
        task: The task's metrics beside torch's, with intervals; the differences are among the checks.
        speed: Time over that of the FP32 graph.
        first_divergence: Where the graph leaves torch first, when a check of the numbers failed.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")  # `passed` is written, and computed again when read

    graph: str
    texts: int
    shapes: tuple[tuple[int, int], ...]
    checks: tuple[Check, ...]
    task: tuple[TaskComparison, ...] = ()
    speed: tuple[SpeedRatio, ...] = ()
    first_divergence: str | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    def measured(self) -> dict[str, dict[str, float]]:
        """The figures by check, under the graph's name, as a manifest has them."""
        return {self.graph: {check.name: check.measured for check in self.checks}}

    def markdown(self) -> str:
        """The report as a Markdown section."""
        lines = [f"### {self.graph}: {'passed' if self.passed else 'FAILED'}", ""]
        shapes = ", ".join(f"{batch}×{length}" for batch, length in self.shapes)
        lines += [f"{self.texts} texts" + (f"; shapes {shapes}" if shapes else ""), ""]
        lines += ["| check | measured | bar | passed |", "|---|---|---|---|"]
        lines += [
            f"| {one.name} | {one.measured:.6g}{one.where} | {one.relation} {one.bar:.6g} | "
            f"{'yes' if one.passed else 'NO'} |"
            for one in self.checks
        ]
        if self.task:
            lines += ["", "| task | instructions | torch | graph | difference, points | 95 % interval |"]
            lines += ["|---|---|---|---|---|---|"]
        lines += [
            f"| {one.name} | {one.instructions} | {one.torch:.4f} | {one.graph:.4f} | {100 * one.difference:+.2f} | "
            f"{100 * one.low:+.2f} to {100 * one.high:+.2f} |"
            for one in self.task
        ]
        if self.speed:
            shown = ", ".join(f"{one.ratio:.2f} at {one.batch}×{one.length}" for one in self.speed)
            lines += ["", f"Time over FP32's in ONNX Runtime, one thread: {shown}."]
        if self.first_divergence:
            lines += ["", f"First divergence: {self.first_divergence}."]
        return "\n".join(lines) + "\n"
