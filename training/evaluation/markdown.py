"""The report for people: report.md, rendered from the tree that report.json holds."""

from collections.abc import Callable, Mapping
from typing import Any

from training.evaluation.tables import nested, number, plain_text, table

Tree = Mapping[str, Any]
LABEL_METRICS = {"top1_accuracy": "top-1", "top3_accuracy": "top-3", "macro_f1": "macro-F1"}
RANKING_METRICS = {"ndcg@10": "NDCG@10", "recall@10": "recall@10", "precision@10": "precision@10", "mrr": "MRR"}
SHOWN = {**LABEL_METRICS, **RANKING_METRICS}


def render(tree: Tree, plots: Mapping[str, str]) -> str:
    """The whole report; `plots` maps sections to the files of their plots."""
    sections: dict[str, Callable[[Tree], str]] = {
        "Labels": _label_task,
        "Confusions": _confusion,
        "Ranking of the whole catalogue": _ranking,
        "Calibration": _calibration,
        "Robustness": _robustness,
        "Coverage and popularity": _coverage,
        "Learning curve": _learning_curve,
        "Histories": _history,
        "Each label": _details,
        "How it was measured": _provenance,
    }
    plot_of = {
        "Labels": "label_task",
        "Confusions": "confusion",
        "Ranking of the whole catalogue": "ranking",
        "Calibration": "calibration",
        "Robustness": "robustness",
        "Learning curve": "learning_curve",
    }
    labels_in = {"Labels", "Confusions", "Calibration", "Robustness", "Learning curve", "Each label"}
    weak = tree["dataset"]["weak_labels"]
    parts = [f"# {tree['run']['domain']}: evaluation of run {tree['run']['run_id']}\n", _header(tree), glance(tree)]
    for title, section in sections.items():
        mark = " (weak labels)" if weak and (title in labels_in or title.startswith("Ranking")) else ""
        parts.append(f"## {title}{mark}\n\n{section(tree)}")
        if (plot := plots.get(plot_of.get(title, ""))) is not None:
            parts.append(f"![{title}{mark}]({plot})\n")
    return "\n".join(parts)


def _header(tree: Tree) -> str:
    run, dataset = tree["run"], tree["dataset"]
    encoder = plain_text(run["encoder"]["name"])
    lines = [
        ("encoder", f"{encoder}, {_encoder_method(run)}"),
        ("dataset", f"{plain_text(dataset['source'])}, fingerprint {dataset['fingerprint'][:16]}…"),
        ("items, labels", f"{dataset['items']:,}, {dataset['labels']:,}"),
        ("instructions", ", ".join(f"{count:,} {split}" for split, count in dataset["instructions"].items())),
    ]
    if run["init_from"] is not None:
        lines.append(("transfer", f"the encoder started from {plain_text(str(run['init_from']))}"))
    if run["shots"] is not None:
        lines.append(("few-shot", f"{plain_text(str(run['shots']))} training instructions a label"))
    text = table(("", ""), lines, text_columns=2)
    if dataset["weak_labels"]:
        text += (
            "\n**The labels are weak**: rules set them, not people. What follows measures agreement with the rules.\n"
        )
    return text + "".join(f"\nNote: {plain_text(note)}.\n" for note in dataset["notes"])


def _encoder_method(run: Tree) -> str:
    method, made = run["encoder_method"], run.get("distillation")
    tuned = "frozen" if method == "frozen" else f"tuned with {method}"
    if not made:
        return tuned
    text = f"distilled from {plain_text(made['teacher'])}"
    if made["layers"] is not None:
        text += f", layers {', '.join(map(str, made['layers']))} of its {made['teacher_layers']} (from 0)"
    return text if method == "distilled" else f"{text}, then {tuned}"


def glance_rows(tree: Tree) -> list[tuple[str, str, str, str]]:
    """The few numbers that matter most: what, the run, the best plain baseline, the difference."""
    rows = []
    for section, metrics in (("label_task", ("top1_accuracy", "macro_f1")), ("ranking", ("ndcg@10",))):
        for split, part in (tree[section] or {"splits": {}})["splits"].items():
            tuned, difference = part["systems"]["tuned"], part["difference"]
            for metric in metrics:
                best = difference and part["systems"][difference["baseline"]]
                rows.append(
                    (
                        f"{SHOWN[metric]}, {split} ({part['instructions']:,})",
                        number(tuned[metric]),
                        f"{number(best[metric])} {best['title']}" if best else "–",
                        number(difference[metric]) if difference else "–",
                    )
                )
    return rows


def glance(tree: Tree) -> str:
    """The table of `glance_rows`, and what its intervals are."""
    rows = glance_rows(tree)
    if not rows:
        return "No instruction is held out: there is nothing to judge the run by.\n"
    weak = " (weak labels)" if tree["dataset"]["weak_labels"] else ""
    header = (f"at a glance{weak}", "run", "best plain baseline", "difference")
    resamples = tree["settings"]["resamples"]
    return (
        f"{table(header, rows)}\nIn brackets: 95 % intervals, percentile bootstrap over instructions, {resamples:,} "
        "resamples; differences are paired. They say how sure a number is for instructions like these, not how it "
        "would change with another seed of the training.\n"
    )


def _systems(part: Tree, metrics: Mapping[str, str], split: str) -> str:
    header = (f"{split}, {part['instructions']:,} instructions", *metrics.values())
    rows = [(own["title"], *(number(own[name]) for name in metrics)) for own in part["systems"].values()]
    difference = part["difference"]
    if difference:
        title = part["systems"][difference["baseline"]]["title"]
        rows.append((f"**tuned minus {title}**", *(number(difference[name]) for name in metrics)))
    return table(header, rows)


def _label_task(tree: Tree) -> str:
    task = tree["label_task"]
    if task is None:
        return "No labelled instruction is held out.\n"
    parts = [_systems(part, LABEL_METRICS, split) for split, part in task["splits"].items()]
    notes = "".join(f" {note[0].upper()}{note[1:]}." for note in task["notes"])
    taught = f"The trained baselines learned from {task['taught_by']}. Zero-shot ones learned from nothing.{notes}\n"
    return "\n".join([*parts, taught])


def _confusion(tree: Tree) -> str:
    if tree["labels"] is None:
        return "No labelled instruction is held out.\n"
    found, split = tree["labels"]["confusion"], tree["labels"]["split"]
    if not found["frequent"]:
        return f"None of the {found['instructions']:,} {split} instructions is read wrongly.\n"
    rows = [
        (plain_text(pair["label"]), plain_text(pair["read_as"]), pair["count"], pair["of"])
        for pair in found["frequent"]
    ]
    text = f"{found['errors']:,} of {found['instructions']:,} {split} instructions are read wrongly. Most often:\n\n"
    return text + table(("label", "read as", "times", "of"), rows, text_columns=2)


def _ranking(tree: Tree) -> str:
    if tree["ranking"] is None:
        return "No instruction is held out that an item answers.\n"
    parts = [_systems(part, RANKING_METRICS, split) for split, part in tree["ranking"]["splits"].items()]
    note = "Recall divides by all relevant items: it is low where an instruction has many more than ten.\n"
    return "\n".join([*parts, note])


def _calibration(tree: Tree) -> str:
    part = tree["calibration"]
    if part is None:
        return "No labelled instruction is held out.\n"
    columns = {"as tuned": part["as_tuned"]}
    text = ""
    if part["rescaled"] is not None:
        columns["with the best temperature"] = part["rescaled"]
        limit = ", the limit of the search" if part["temperature_at_limit"] else ""
        text = (
            f"\nThe temperature that minimises the validation loss is {part['rescaled']['temperature']:.2f}{limit}: "
            "above 1 the head is too sure of itself, below 1 not sure enough. The run does not apply it.\n"
        )
    elif part["split"] == "validation":
        text = "\nThere is no test split to judge the best temperature on, which validation would tell.\n"
    names = {
        "expected_calibration_error": "expected calibration error",
        "brier_score": "Brier score (0 to 2)",
        "cross_entropy": "cross-entropy (nats)",
        "mean_confidence": "mean confidence",
        "accuracy": "accuracy",
    }
    rows = [(shown, *(number(own[name]) for own in columns.values())) for name, shown in names.items()]
    return table((f"{part['split']}, {part['as_tuned']['instructions']:,} instructions", *columns), rows) + text


def _robustness(tree: Tree) -> str:
    part = tree["robustness"]
    if part is None:
        return "No labelled instruction is held out.\n"
    ranked = part["instructions_ranked"]
    header = [f"{part['split']}, {part['instructions']:,} instructions", "top-1", "drop", "top label changes"]
    header += [f"NDCG@10, {ranked:,} of them", "drop"] if ranked else []
    plain = part["unchanged"]
    rows = [["as written", number(plain["accuracy"]), "–", "–", *([number(plain["ndcg@10"]), "–"] if ranked else [])]]
    keys = ["accuracy", "drop", "top_label_changes", *(["ndcg@10", "ndcg@10_drop"] if ranked else [])]
    rows += [[plain_text(entry["title"]), *(number(entry[key]) for key in keys)] for entry in part["perturbations"]]
    idle = [entry["title"] for entry in part["perturbations"] if not entry["texts_changed"]]
    note = f"\nNo instruction changed by: {', '.join(idle)}.\n" if idle else ""
    if part["instructions"] < part["instructions_of_split"]:
        note += f"\nDrawn from {part['instructions_of_split']:,} instructions.\n"
    return table(header, rows) + note


def _coverage(tree: Tree) -> str:
    part = tree["coverage"]
    if part is None:
        return "No instruction is held out that an item answers.\n"
    header = ["in the top ten at all", "items", "labels", "Gini, items", "Gini, labels"]
    popular = part["popularity"]
    header += ["popularity percentile"] if popular else []
    rows = [
        [
            own["title"],
            f"{own['items']:.2%}",
            f"{own['labels']:.1%}",
            number(own["gini_items"]),
            number(own["gini_labels"]),
            *([number(own["popularity_percentile"], 1)] if popular else []),
        ]
        for own in part["systems"].values()
    ]
    text = (
        f"\n{part['instructions']:,} {part['split']} instructions could show {part['possible_items']:.2%} of the "
        f"{part['catalogue_items']:,} items at most; what answers them has {part['labels_asked_for']:.1%} of the "
        f"{part['catalogue_labels']:,} labels. A Gini coefficient of 0 is equal exposure.\n"
    )
    if popular:
        text += (
            f"\nPopularity is {popular['source']}. The catalogue's mean percentile is 50, that of the relevant items "
            f"{number(popular['relevant_percentile'], 1)}; above that a system favours what is popular.\n"
        )
    else:
        text += "\nThe catalogue has no prior and no interactions: popularity bias cannot be measured.\n"
    return table(header, rows) + text


def _learning_curve(tree: Tree) -> str:
    part = tree["learning_curve"]
    if part is None:
        return "Fewer than two labels have a training instruction, or none is held out.\n"
    own = f"{'distilled' if tree['run']['encoder_method'] == 'distilled' else 'tuned'} encoder"
    titles = {"base": "the run's encoder (frozen)" if part["frozen"] else "base encoder", "tuned": own}
    rows = []
    for points in zip(*part["curves"].values(), strict=True):
        shots = "all" if points[0]["shots"] is None else points[0]["shots"]
        rows.append((shots, f"{points[0]['examples']:,}", points[0]["draws"], *map(_mean, points)))
    header = ("training instructions a label", "examples", "draws", *(titles[name] for name in part["curves"]))
    text = (
        "\nTop-1 accuracy of logistic regression on the encoder's vectors, mean ± standard deviation over draws. "
        f"{part['labels_taught']:,} labels have training instructions.\n"
    )
    if not part["frozen"]:
        text += (
            f"\nThe {own} has seen all training instructions. Its curve says how well its vectors tell labels "
            "apart, not what a tuning with so few would reach.\n"
        )
    return table(header, rows) + text


def _mean(point: Tree) -> str:
    deviation = point["standard_deviation"]
    return number(point["mean"]) + ("" if deviation is None else f" ± {deviation:.3f}")


def _history(tree: Tree) -> str:
    if not tree["history"]:
        return "The run measured no histories.\n"
    return f"As the training measured them (metrics.json).\n\n{nested(tree['history'])}"


def _details(tree: Tree) -> str:
    if tree["labels"] is None:
        return "No labelled instruction is held out.\n"
    keys = ("precision", "recall", "f1", "support")
    rows = [(plain_text(own["label"]), *(number(own[key]) for key in keys)) for own in tree["labels"]["details"]]
    text = table((f"{tree['labels']['split']} split", *keys), rows)
    return f"<details><summary>{len(rows):,} labels</summary>\n\n{text}\n</details>\n"


def _provenance(tree: Tree) -> str:
    machine = tree["machine"]
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    rows = [
        ("seed", tree["settings"]["seed"]),
        ("resamples", f"{tree['settings']['resamples']:,}"),
        ("run fingerprint", tree["run"]["fingerprint"]),
        ("dataset fingerprint", tree["dataset"]["fingerprint"]),
        ("processor", f"{plain_text(machine['processor'])}, {machine['cores']} cores"),
        ("Python", machine["python"]),
        ("libraries", libraries),
        ("seconds", ", ".join(f"{name} {seconds:.0f}" for name, seconds in tree["timings"].items())),
    ]
    return (
        table(("", ""), rows, text_columns=2)
        + "\ndocs/evaluation.md says what each number means and where its formula is from.\n"
    )
