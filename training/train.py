"""The recipe: dataset, vectors, head, score weights, metrics, run."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from training.augmentation import prepare_dataset
from training.dataset import SPLITS, Dataset, Split
from training.dataset_loading import load_dataset
from training.embedding_cache import EmbeddingCache
from training.encoder_source import EncoderSource
from training.head import (
    HeadExamples,
    Observe,
    StartHead,
    TunedHead,
    equally_weighted,
    joined,
    label_centroids,
    sample_items,
    tune_weighted_head,
)
from training.history_learning import Histories, learn_histories, measure_histories
from training.metrics import label_accuracy, ranking_metrics, report, rounded, zero_shot_label_scores
from training.model import InstructionModel
from training.plan import Plan
from training.ranking import Fit, RankingExamples, fit_score_weights
from training.ranking_examples import join, of_instructions, of_people
from training.relevance import Relevance
from training.run import DatasetRecord, EncoderRecord, Run, RunContent, RunManifest, run_name, write_run
from training.score import ZERO_SHOT, CatalogueSide, ScoreWeights, Vectors, log_softmax
from training.tracking import Tracker, open_tracker

Say = Callable[[str], None]


@dataclass(frozen=True)
class Embedded:
    """A dataset with its vectors: `h` [n, H] of all instructions, and the catalogue's side of the score.

    `augmentation` are the instructions that no person labelled, as examples of the head.
    """

    dataset: Dataset
    h: Vectors
    label_ids: npt.NDArray[np.int64]
    augmentation: HeadExamples
    catalogue: CatalogueSide
    relevance: Relevance

    def rows(self, split: Split) -> list[int]:
        """The places of a split's instructions."""
        return [row for row, instruction in enumerate(self.dataset.instructions) if instruction.split == split]

    def answerable(self, rows: list[int]) -> list[int]:
        """Those of `rows` whose instruction some item answers."""
        return [row for row in rows if self.relevance.grades(self.dataset.instructions[row])]

    def grades(self, rows: list[int]) -> list[dict[int, float]]:
        """The graded catalogue rows of the instructions at `rows`."""
        return [dict(self.relevance.grades(self.dataset.instructions[row])) for row in rows]


def train_run(plan: Plan, say: Say) -> Run:
    """Train as planned and write the run; `say` is given one line for each stage.

    Raises:
        DatasetError: The dataset breaks its contract.
        EncoderError: The encoder cannot be loaded.
        TrainingError: What the config's tracking needs is not there.
    """
    with open_tracker(plan, say) as tracker:
        return _train(plan, say, tracker)


def _train(plan: Plan, say: Say, tracker: Tracker) -> Run:
    dataset = load_dataset(plan.config, plan.data)
    say(describe(dataset))
    if plan.encoder.run is not None:
        say(f"encoder: starts as that of run {plan.encoder.run}")
    dataset, shots = prepare_dataset(plan, dataset, say)
    for note in dataset.notes:
        say(f"note: {note}")
    encoder, start, tuning = plan.encoder, None, None
    if plan.config.encoder_tuning.method != "frozen":
        # Imported here: a frozen encoder has no need of peft and the Trainer.
        from training.encoder_tuning import forget_tuning, tune_encoder  # noqa: PLC0415

        encoder, start, tuning = tune_encoder(plan, dataset, say, tracker.callbacks())
    distillation = None
    if plan.distillation_teacher is not None:
        from training.distillation import distil_encoder, forget_distillation  # noqa: PLC0415 - loads the Trainer

        encoder, distillation = distil_encoder(plan, plan.distillation_teacher, dataset, say)
    embedded, hidden_size = embed_dataset(plan, encoder, dataset)
    head = tune_instruction_head(plan, embedded, say, start, tracker.head)
    logs = log_softmax(embedded.h @ head.weight.T + head.bias)
    histories = learn_histories(plan.config, dataset, embedded.catalogue, say)
    dataset = histories.with_priors(dataset)
    embedded = replace(embedded, dataset=dataset, catalogue=histories.catalogue)
    fit = _fit(plan, embedded, logs, histories, say)
    metrics, text = _measure(plan, embedded, logs, head, fit, histories)
    if tuning is not None:
        metrics["encoder_tuning"] = rounded(asdict(tuning))
    if shots is not None:
        metrics["shots"] = asdict(shots)
    if plan.encoder.run is not None:
        metrics["init_from"] = {"run": plan.encoder.run, "encoder_sha256": plan.encoder.sha256}
    if distillation is not None:
        metrics["distillation"] = rounded(asdict(distillation))
    tracker.result(metrics)
    created = datetime.now(timezone.utc)
    settings = plan.config.encoder
    manifest = RunManifest(
        run_id=run_name(created, plan.fingerprint),
        domain=plan.config.domain,
        created=created.isoformat(timespec="seconds"),
        fingerprint=plan.fingerprint,
        dataset=DatasetRecord(source=dataset.source, fingerprint=dataset.fingerprint, files=dict(dataset.files)),
        encoder=EncoderRecord(
            name=settings.name,
            sha256=encoder.sha256,
            pooling=settings.pooling,
            max_length=settings.max_length,
            hidden_size=hidden_size,
        ),
        score_weights=fit.weights,
        metrics=metrics,
    )
    vectors, behaviour = embedded.catalogue.vectors, histories.vectors
    run = write_run(
        plan.runs, RunContent(manifest, plan.config, dataset, encoder.folder, head, vectors, text, behaviour)
    )
    if tuning is not None:
        forget_tuning(plan)
    if distillation is not None:
        forget_distillation(plan)
    return run


def describe(dataset: Dataset) -> str:
    """One line on what a dataset holds."""
    splits = ", ".join(f"{len(dataset.split(split))} {split}" for split in SPLITS)
    weak = " (weak labels)" if dataset.weak_labels else ""
    return (
        f"dataset {dataset.source}: {len(dataset.items):,} items, {len(dataset.labels)} labels, "
        f"instructions {splits}{weak}, {len(dataset.interactions):,} interactions"
    )


def embed_dataset(plan: Plan, encoder: EncoderSource, dataset: Dataset) -> tuple[Embedded, int]:
    """The dataset with `encoder`'s vectors of its texts, and their length H. Known ones are read from the cache."""
    settings = plan.config.encoder
    model = InstructionModel.from_folder(
        encoder.folder, settings.pooling, settings.max_length, labels=len(dataset.labels)
    )
    cache = EmbeddingCache.below(plan.var, encoder, settings.pooling, settings.max_length)
    instructions, augmented = dataset.instructions, [one.instruction for one in dataset.augmentation]
    texts = [one.text for one in [*instructions, *augmented]] + [item.text for item in dataset.items]
    with tqdm(total=len(set(texts)), desc="embedding", unit="text", disable=None) as bar:
        vectors = cache.embed(model, texts, plan.config.training.embedding_batch_size, bar.update)
    label_id = {label: number for number, label in enumerate(dataset.labels)}
    ids = np.array([label_id[one.label] for one in [*instructions, *augmented]], dtype=np.int64)
    given, asked = len(instructions), len(ids)
    catalogue = CatalogueSide(
        vectors[asked:], [label_id[item.label] for item in dataset.items], [item.prior for item in dataset.items]
    )
    weights = np.array([one.weight for one in dataset.augmentation], dtype=np.float32)
    examples = HeadExamples(vectors[given:asked], ids[given:], weights)
    embedded = Embedded(dataset, vectors[:given], ids[:given], examples, catalogue, Relevance(dataset.items))
    return embedded, model.hidden_size


def tune_instruction_head(
    plan: Plan, embedded: Embedded, say: Say, start: StartHead | None = None, observe: Observe | None = None
) -> TunedHead:
    """The head tuned on the training split, augmentation and drawn items, the best on the validation split.

    `start` is a head that learned together with the encoder, `observe` is told of every epoch.
    """
    settings = plan.config.training
    train, validation = embedded.rows("train"), embedded.rows("validation")
    dataset = embedded.dataset
    drawn = sample_items(dataset.items, settings.items_per_label, settings.seed, dataset.held_out)
    items = equally_weighted(
        embedded.catalogue.vectors[drawn], embedded.catalogue.label_ids[drawn], settings.item_weight
    )
    head = tune_weighted_head(
        equally_weighted(embedded.h[train], embedded.label_ids[train]),
        joined(embedded.augmentation, items),
        equally_weighted(embedded.h[validation], embedded.label_ids[validation]),
        label_centroids(embedded.catalogue, len(dataset.labels)),
        settings,
        start,
        observe,
    )
    untaught = len(dataset.labels) - len(set(embedded.label_ids[train].tolist()))
    others = "items and synthetic or pseudo-labelled instructions" if dataset.augmentation else "item texts"
    say(
        f"head: best {head.found_by}, "
        f"validation loss {head.validation_loss:.3f}; {untaught} of {len(dataset.labels)} labels have no "
        f"training instruction and are learned from {others} alone"
    )
    return head


def _fit(plan: Plan, embedded: Embedded, logs: Vectors, histories: Histories, say: Say) -> Fit:
    validation, train = (embedded.answerable(embedded.rows(split)) for split in ("validation", "train"))
    examples = _of_instructions(embedded, logs, validation or train)
    fitting = histories.fitting
    if fitting:
        queries = _of_instructions(embedded, logs, [*validation, *train])
        examples = join(examples, of_people(fitting, queries, histories.states(fitting)))
    seed = plan.config.training.seed
    fit = fit_score_weights(examples, embedded.catalogue, history=bool(fitting), prior=histories.has_prior, seed=seed)
    weights = fit.weights
    say(
        f"score weights from {fit.examples} examples: alpha {weights.alpha:.3f}, beta {weights.beta:.3f}, "
        f"gamma {weights.gamma:.3f}, delta {weights.delta:.3f}, history decay {weights.history_decay}"
    )
    if not fitting:
        say("no interactions to learn from: gamma is 0, a history has no effect on the ranking")
    if not histories.has_prior:
        say("no prior in the catalogue: delta is 0")
    return fit


def _of_instructions(embedded: Embedded, logs: Vectors, rows: list[int]) -> RankingExamples:
    return of_instructions(embedded.h[rows], logs[rows], embedded.grades(rows))


def _measure(
    plan: Plan, embedded: Embedded, logs: Vectors, head: TunedHead, fit: Fit, histories: Histories
) -> tuple[dict[str, Any], str]:
    """The metrics, and the classification report of the test split (else of the validation split)."""
    dataset = embedded.dataset
    metrics: dict[str, Any] = {
        "weak_labels": dataset.weak_labels,
        "notes": list(dataset.notes),
        "head": {
            "epochs": head.epochs,
            "weight_decay": head.weight_decay,
            "ridge_penalty": head.ridge_penalty,
            "validation_loss": head.validation_loss,
        },
        "score_weights": {"loss": fit.loss, "examples": fit.examples},
    }
    text = "no instructions are held out: nothing to report\n"
    splits: tuple[Split, ...] = ("validation", "test")
    for split in splits:
        rows = embedded.rows(split)
        if not rows:
            continue
        metrics[split] = _measure_split(embedded, logs, fit.weights, rows)
        title = f"{split} split{', weak labels' if dataset.weak_labels else ''}"
        text = f"{title}\n\n{report(logs[rows].argmax(axis=1), embedded.label_ids[rows], dataset.labels)}"
    if histories.held_out:
        asked = embedded.rows("test") or embedded.rows("validation") or embedded.rows("train")
        queries = _of_instructions(embedded, logs, asked)
        metrics["history"] = measure_histories(histories, queries, fit.weights, plan.config.training.seed)
    return rounded(metrics), text


def _measure_split(embedded: Embedded, logs: Vectors, weights: ScoreWeights, rows: list[int]) -> dict[str, Any]:
    h, label_ids, catalogue = embedded.h[rows], embedded.label_ids[rows], embedded.catalogue
    ranked = embedded.answerable(rows)
    examples = _of_instructions(embedded, logs, ranked)
    return {
        "instructions": len(rows),
        **({"instructions_ranked": len(ranked)} if len(ranked) < len(rows) else {}),
        "labels": label_accuracy(logs[rows], label_ids),
        "labels_zero_shot": label_accuracy(zero_shot_label_scores(h, catalogue, logs.shape[1]), label_ids),
        "ranking": ranking_metrics(examples, catalogue, weights),
        "ranking_zero_shot": ranking_metrics(examples, catalogue, ZERO_SHOT),
    }
