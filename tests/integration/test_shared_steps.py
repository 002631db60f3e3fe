"""Domains with equal encoders serve from one loaded copy, and still each goes its own way."""

import json
import shutil
from pathlib import Path

from conftest import copy_of
from instructrec_client import Client
from project import ROOT, Project
from tritonclient import grpc

from export.release import export_release
from serving.deploy import deploy, roll_back
from serving.embedded import Endpoints
from serving.layout import Layout
from serving.releases import Release
from training.config_loading import load_config
from training.run import Run


def export_as(domain: str, run: Path, layout: Layout, settings: tuple[str, ...]) -> Release:
    """Export a run as another domain's, with shared steps."""
    copied = layout.var / "runs" / domain / run.name
    shutil.copytree(run, copied)
    about = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps({**about, "domain": domain}))
    overrides = (f"domain={domain}", "serving.share_steps=true", "export.verification_texts=16", *settings)
    config = load_config(ROOT / "configs" / "ecommerce.yaml", overrides)
    return export_release(Run.open(copied), config, layout, "fp32").release


def loaded(project: Project) -> list[str]:
    with grpc.InferenceServerClient(project.grpc_url) as client:
        models = client.get_model_repository_index().models
    return sorted(model.name for model in models if model.state == "READY")


def answering(project: Project, domain: str) -> str:
    with Client(project.grpc_url, domain=domain) as client:
        return client.recommend("a blue shirt", k=3).release


def test_two_domains_share_an_encoder_until_one_gets_its_own(
    small: Project, two_releases: tuple[Project, str], tmp_path: Path
) -> None:
    project = copy_of(small, tmp_path / "var")
    layout = Layout(project.var)
    endpoints = Endpoints(grpc_port=project.grpc_port, http_port=project.http_port, metrics_port=project.metrics_port)
    [run] = (small.var / "runs" / "ecommerce").iterdir()
    [other_run] = [one for one in (two_releases[0].var / "runs" / "ecommerce").iterdir() if one.name != run.name]
    settings = tuple(one for one in small.settings if one.startswith(("serving", "encoder")))
    shop, news = (export_as(domain, run, layout, settings) for domain in ("shop", "news"))
    shared = {shop.manifest.steps[step].model for step in ("tokenizer", "encoder")}
    assert shared == {news.manifest.steps[step].model for step in ("tokenizer", "encoder")}
    own = {f"{domain}_{step}" for domain in ("shop", "news") for step in ("head", "topk")}
    try:
        deploy(layout, shop, endpoints)
        deploy(layout, news, endpoints)
        assert set(loaded(project)) == {"shop", "news", "feedback", *own, *shared}
        assert (answering(project, "shop"), answering(project, "news")) == ("1", "1")

        theirs = tuple(one for one in two_releases[0].settings if one.startswith(("serving", "encoder")))
        second = export_as("shop", other_run, layout, theirs)
        new = {second.manifest.steps["encoder"].model}
        assert not new & shared
        assert second.manifest.steps["tokenizer"].model in shared
        deploy(layout, second, endpoints)
        assert set(loaded(project)) == {"shop", "news", "feedback", *own, *shared, *new}
        assert (answering(project, "shop"), answering(project, "news")) == ("2", "1")
        assert roll_back(layout, "shop").answer.release == "1"
        # One step away still, for the one domain; and the other's publish leaves it so.
        assert set(loaded(project)) == {"shop", "news", "feedback", *own, *shared, *new}
        third = export_as("news", other_run, layout, theirs)
        deploy(layout, third, endpoints)
        assert (answering(project, "shop"), answering(project, "news")) == ("1", "2")
        assert set(loaded(project)) == {"shop", "news", "feedback", *own, *shared, *new}
    finally:
        project.make("stop", check=False)
