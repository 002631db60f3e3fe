"""Releases of derived runs: what did not change is taken over, and what was removed never comes back."""

import csv
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from instructrec_client import Client
from project import ROOT, Project

from continual.release_encoder import release_encoder
from export.errors import ExportError, VerificationError
from export.kept_settings import ServedAs, served_as
from export.release import Exported, export_release
from export.texts import verified_instructions
from serving.evidence import Evidence
from serving.layout import Layout
from serving.releases import Release, ReleaseStore
from training.config_loading import load_config
from training.derived_run import derive_run
from training.run import Run

INSTRUCTION = "I want to buy a blue shirt"
ENCODER = "models/ecommerce_encoder/1/model.onnx"


@dataclass
class Exporter:
    """Exports runs of a project as `make export RUN=…` does, and keeps what it was told."""

    project: Project
    said: list[str]

    def __call__(self, run: Run, *overrides: str) -> Exported:
        config = load_config(ROOT / "configs/ecommerce.yaml", (*self.project.settings, *overrides))
        return export_release(run, config, Layout(self.project.var), "fp32", say=self.said.append)


@pytest.fixture
def export(own_project: Project) -> Exporter:
    return Exporter(own_project, [])


@pytest.fixture
def trained(own_project: Project) -> Run:
    [path] = (own_project.var / "runs/ecommerce").iterdir()
    return Run.open(path)


@pytest.fixture
def releases(own_project: Project) -> ReleaseStore:
    return ReleaseStore(Layout(own_project.var).releases("ecommerce"))


def with_another_head(run: Run, var: Path, by: float = 0.01) -> Run:
    weight, bias = run.head()
    return derive_run(run, var, reason="test", head=(weight + np.float32(by), bias))


def checks_of(release: Release) -> dict[str, int | None]:
    """Each check of a release's encoder, and the release that it was measured in where that is an earlier one."""
    [report] = json.loads((release.path / "verification.json").read_text(encoding="utf-8"))
    return {check["name"]: check["release"] for check in report["checks"]}


def change(path: Path, edit: Callable[[bytes], bytes]) -> None:
    """Change a file that other projects share by a hard link, for this project alone."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(edit(content))


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_a_new_head_needs_neither_torch_nor_another_encoder(small: Project, own_project: Project, trained: Run) -> None:
    shutil.copytree(small.var / "cache/embeddings", own_project.var / "cache/embeddings")
    derived = with_another_head(trained, own_project.var)
    arguments = ["--config", "configs/ecommerce.yaml", "--var", str(own_project.var), "--precision", "fp32"]
    arguments += ["--run", str(derived.path), *own_project.settings]
    script = f"""
import sys
from export.__main__ import main
main({arguments!r}, standalone_mode=False)
print("loaded:", sorted(set(("torch", "transformers", "sklearn", "pandas")) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "encoder of release 1 and verified" in done.stdout
    assert "loaded: []" in done.stdout
    first, second = (Release(own_project.var / "releases/ecommerce" / number) for number in "12")
    versions = {name: step.version for name, step in second.manifest.steps.items()}
    assert versions == {"tokenizer": 1, "encoder": 1, "head": 2, "topk": 2}
    for step in ("encoder", "tokenizer"):
        assert second.manifest.steps[step] == first.manifest.steps[step], "a publish neither copies nor reloads it"
    assert (second.path / ENCODER).samefile(first.path / ENCODER)
    measured = checks_of(second)
    carried = {name for name, release in measured.items() if release == 1}
    assert carried == {
        "minimum cosine over shapes",
        "difference that batch neighbours make",
        "difference that padding makes",
    }
    assert {"minimum cosine", "same best label", "overlap of the best 10 items", "loss of NDCG@10"} <= set(measured)
    assert "(release 1)" in (second.path / "verification.md").read_text(encoding="utf-8")
    second.manifest.verify(second.path)


def test_what_an_export_has_measured_is_not_embedded_again(
    small: Project, own_project: Project, trained: Run, releases: ReleaseStore, export: Exporter
) -> None:
    shutil.copytree(small.var / "cache/embeddings", own_project.var / "cache/embeddings")
    encoder, texts = release_encoder(releases.open(1), trained), [one.text for one in trained.instructions("test")]
    cache = encoder.cache(own_project.var)
    kept = cache.read(texts)
    assert set(kept) == set(texts), "a first turn of `make tune` has them already"
    np.testing.assert_allclose([kept[text] for text in texts], encoder.embed(texts), atol=1e-6)
    before = cache.path.read_bytes()
    evidence = Evidence.read(export(with_another_head(trained, own_project.var)).release.path)
    assert evidence is not None
    assert evidence.task is not None
    assert len(evidence.task.instructions) == len(texts)
    assert cache.path.read_bytes() == before


def test_how_a_release_is_served_is_read_from_its_configs(
    own_project: Project, trained: Run, releases: ReleaseStore, export: Exporter
) -> None:
    first, short = releases.open(1), ("serving.length_buckets=[8]", "serving.mode=fused")
    assert served_as(first) == ServedAs("ensemble", "onnxruntime", 64)
    second = export(trained, *short).release
    assert served_as(second) == ServedAs("fused", "onnxruntime", 64), "the run's limit, whatever the buckets are"
    texts = [" ".join(["shirt"] * count) for count in (30, 80)]
    vectors = [release_encoder(release, trained).embed(texts) for release in (first, second)]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    change(first.models / "ecommerce_tokenizer" / "config.pbtxt", lambda _: b"name: {")
    with pytest.raises(ExportError, match=r"does not say how it is served .*; export the release again"):
        served_as(first)


def test_a_damaged_encoder_is_named_and_the_next_release_is_asked(
    own_project: Project, trained: Run, releases: ReleaseStore, export: Exporter
) -> None:
    second = with_another_head(trained, own_project.var)
    assert export(second).taken_from == 1
    change(own_project.var / "releases/ecommerce/2" / ENCODER, flip)
    third = export(with_another_head(second, own_project.var))
    assert third.taken_from == 1
    [line] = export.said
    assert "release 2 is damaged, its encoder is not used again" in line
    assert ENCODER in line
    assert third.release.manifest.files[ENCODER] == releases.open(1).manifest.files[ENCODER]
    third.release.manifest.verify(third.release.path)


def test_without_a_whole_encoder_it_is_made_anew_to_the_same_bytes(
    own_project: Project, trained: Run, releases: ReleaseStore, export: Exporter
) -> None:
    change(own_project.var / "releases/ecommerce/1" / ENCODER, flip)
    made = export(with_another_head(trained, own_project.var))
    assert made.taken_from is None
    assert "release 1 is damaged" in export.said[0]
    assert made.release.manifest.steps["encoder"] == releases.open(1).manifest.steps["encoder"]
    made.release.manifest.verify(made.release.path)


def test_other_texts_are_all_measured_anew(own_project: Project, trained: Run, export: Exporter) -> None:
    instructions = trained.instructions()
    held_out = verified_instructions(trained, 1)[0]
    instructions[instructions.index(held_out)] = replace(held_out, text="a shirt that nobody asked for before")
    derived = derive_run(trained, own_project.var, reason="test", instructions=instructions)
    exported = export(derived)
    assert exported.taken_from == 1
    assert set(checks_of(exported.release).values()) == {None}
    [first, second] = [
        one.manifest.encoder for one in (Release(exported.release.path.with_name("1")), exported.release)
    ]
    assert first is not None
    assert second is not None
    assert first.fingerprint == second.fingerprint
    assert first.texts != second.texts


def test_a_graph_that_does_not_do_for_the_run_is_made_anew(
    own_project: Project, trained: Run, export: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export import reuse  # noqa: PLC0415 - its budgets are changed here

    strict = reuse.FP32_BUDGET.model_copy(update={"top_k_overlap": 1.1})
    monkeypatch.setitem(reuse.BUDGETS, "fp32", strict)

    def refused(*_: object, **__: object) -> None:
        raise VerificationError(reuse.VerificationReport(graph="anew", texts=1, shapes=(), checks=()))

    monkeypatch.setattr("export.graphs.build_encoder", refused)
    with pytest.raises(VerificationError, match="anew"):
        export(with_another_head(trained, own_project.var))
    [line] = export.said
    assert "does not do for this run (overlap of the best 10 items): it is made anew" in line


def test_another_precision_of_a_run_takes_the_fp32_graph_that_was_kept(
    trained: Run, export: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.release.reuse_encoder", lambda *_: None)
    config = load_config(ROOT / "configs/ecommerce.yaml", tuple(export.project.settings))
    layout = Layout(export.project.var)
    first = export_release(trained, config, layout, "fp16").release
    traced: list[object] = []
    monkeypatch.setattr("export.graphs.export_encoder", lambda *arguments: traced.append(arguments))
    second = export_release(trained, config, layout, "fp32").release
    assert not traced
    name = "encoder-fp32.onnx"
    assert second.manifest.verification[name] == first.manifest.verification[name]
    for run, reuse in ((trained, False), (with_another_head(trained, layout.var), True)):
        with pytest.raises(ExportError):
            export_release(run, config, layout, "fp16", reuse=reuse)
        assert traced.pop(), "with REUSE=no, and for another run, it is made anew"


def test_what_the_settings_change_is_not_taken_over(trained: Run) -> None:
    from export.reuse import encoder_origin  # noqa: PLC0415
    from export.settings import ExportSettings, ServingSettings  # noqa: PLC0415

    def fingerprint(
        precision: str = "fp32",
        buckets: tuple[int, ...] = (16, 64),
        engine: Literal["onnxruntime", "openvino"] = "onnxruntime",
        **settings: int,
    ) -> str:
        serving = ServingSettings(length_buckets=buckets, engine=engine)
        return encoder_origin(trained, precision, serving, ExportSettings(**settings), 1).fingerprint  # type: ignore[arg-type]

    others = [
        fingerprint(),
        fingerprint("int8"),
        fingerprint(buckets=(8, 64)),
        fingerprint(engine="openvino"),
        fingerprint(calibration_texts=9),
        fingerprint(verification_texts=9),
    ]
    change(trained.path / "encoder/model.safetensors", flip)
    others.append(fingerprint())
    assert len(set(others)) == len(others)


def test_the_derived_run_is_exported_by_name_and_not_forgotten(own_project: Project, trained: Run) -> None:
    derived = with_another_head(trained, own_project.var)
    printed = own_project.make("export", "PRECISION=fp32").stdout
    assert "is up to date" in printed, "a trained run is found again beside a newer derived one"
    assert f"make export RUN={derived.path}" in printed
    done = own_project.make("export", "PRECISION=fp32", f"RUN={derived.run_id}", "SERVING=fused").stdout
    assert f"run {derived.run_id} exported as fp32, encoder of release 1" in done
    first, second = (own_project.var / "releases/ecommerce" / number for number in "12")
    assert (second / "models/ecommerce_fused/2/model.onnx").samefile(first / ENCODER)


def shop(folder: Path, edit: Callable[[list[dict[str, str]]], list[dict[str, str]]]) -> Path:
    """A data directory whose catalogue is the sample's, edited."""
    (folder / "ecommerce").mkdir(parents=True)
    with (ROOT / "data/ecommerce/catalogue.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    with (folder / "ecommerce/catalogue.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(edit(rows))
    return folder


def test_a_newer_catalogue_goes_live_and_what_was_removed_never_comes_back(
    own_project: Project, tmp_path: Path
) -> None:
    own_project.make("deploy")
    with Client(own_project.grpc_url) as client:
        before = client.recommend(INSTRUCTION, k=5).items
    gone, replaced = before[0].item_id, before[1].item_id

    def edit(rows: list[dict[str, str]]) -> list[dict[str, str]]:
        kept = [row for row in rows if row["item_id"] != gone]
        return [{**row, "item_id": "brand-new"} if row["item_id"] == replaced else row for row in kept]

    stop, wrong, seen = threading.Event(), list[str](), set[str]()

    def keep_asking() -> None:
        with Client(own_project.grpc_url, retries=0, timeout=30.0) as client:
            while not stop.is_set():
                answer = client.recommend(INSTRUCTION, history=[gone], k=100)
                ids = {item.item_id for item in answer.items}
                seen.add(answer.release)
                if (answer.release == "1") != (gone in ids) or (answer.release == "2") != ("brand-new" in ids):
                    wrong.append(f"release {answer.release}")
                time.sleep(0.02)

    caller = threading.Thread(target=keep_asking)
    caller.start()
    try:
        data = shop(tmp_path / "data", edit)
        printed = own_project.make("catalogue", "deploy", f"DATA={data}").stdout
    finally:
        stop.set()
        caller.join()
    assert "1 added, 0 changed, 2 removed; 522 items before, 521 now" in printed
    assert "embedded" not in printed, "the new item has a text that is known"
    assert "exported as fp32, encoder of release 1 and verified" in printed
    assert "published to the running server" in printed
    assert (wrong, seen) == ([], {"1", "2"})
    with Client(own_project.grpc_url) as client:
        after = client.recommend(INSTRUCTION, k=4).items
    assert [item.item_id for item in after] == ["brand-new", *(item.item_id for item in before[2:])]
    np.testing.assert_allclose([item.score for item in after], [item.score for item in before[1:]], rtol=1e-6)

    again = own_project.make("catalogue", f"DATA={data}").stdout
    assert "nothing to do" in again
    assert len(list((own_project.var / "runs/ecommerce").iterdir())) == 2
    half = shop(tmp_path / "half", lambda rows: edit(rows)[:200])
    refused = own_project.make("catalogue", f"DATA={half}", check=False)
    assert refused.returncode != 0
    assert "more than half; nothing was changed. If that is meant: make catalogue SHRINK=yes" in refused.stderr
    assert "Traceback" not in refused.stderr

    own_project.make("rollback")
    undone = own_project.make("catalogue", "deploy", check=False)
    assert "nothing to do" in undone.stdout, "the live release is compared, not the newest"
    assert "release 1 answers, which is not the newest, 2" in undone.stderr
    assert "release 1 answers" in own_project.make("status").stdout
