"""Domains with equal encoders serve from one loaded copy, and still each goes its own way."""

from pathlib import Path
from typing import Any

from instructrec_client import Client
from marked_releases import Marker
from project import Project, new_project

from export.kept_settings import ServedAs, served_as
from export.shared_steps import SHARED, name_by_content
from serving.admin import admin_client
from serving.deploy import deploy, roll_back
from serving.embedded import Endpoints
from serving.files import sha256_of
from serving.layout import Layout
from serving.live_repository import format_config, parse_config
from serving.manifest import files_below
from serving.releases import Release


def shared_release(marker: Marker, domain: str, number: int, encoder: int) -> Release:
    """A marked release as another domain's, whose tokenizer and encoder export named by their content."""
    made = marker.make(number, encoder=encoder)
    for path in made.models.glob("*/config.pbtxt"):  # a link to the base's
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    steps = {}
    for name, step in made.manifest.steps.items():
        folder = made.models / step.model
        if name in SHARED:
            (folder / str(step.version)).rename(folder / "new")
            steps[name] = name_by_content(name, folder)
        else:
            steps[name] = step.model_copy(update={"model": f"{domain}_{name}"})
            folder.rename(folder.with_name(f"{domain}_{name}"))
            rename(folder.with_name(f"{domain}_{name}"))
    ensemble = (made.models / "ecommerce").rename(made.models / domain)
    pins = {step.model: steps[name] for name, step in made.manifest.steps.items()}
    config = rename(ensemble)
    for entry in config.ensemble_scheduling.step:
        entry.model_name, entry.model_version = pins[entry.model_name].model, pins[entry.model_name].version
    (ensemble / "config.pbtxt").write_text(format_config(config))
    files = {name: sha256_of(made.path / name) for name in sorted(files_below(made.path))}
    made.manifest.model_copy(update={"domain": domain, "steps": steps, "files": files}).write(made.path)
    release = Release(made.path)
    assert served_as(release) == ServedAs("ensemble", "onnxruntime", 64), "whatever its steps are called"
    return release


def rename(model: Path) -> Any:
    """Let a model's config name it as its folder does."""
    config = parse_config((model / "config.pbtxt").read_text())
    config.name = model.name
    (model / "config.pbtxt").write_text(format_config(config))
    return config


def loaded(project: Project) -> list[str]:
    with admin_client(Layout(project.var), project.grpc_url) as client:
        models = client.get_model_repository_index().models
    return sorted(model.name for model in models if model.state == "READY")


def answering(project: Project, domain: str) -> str:
    with Client(project.grpc_url, domain=domain) as client:
        return client.recommend("a blue shirt", k=3).release


def test_two_domains_share_an_encoder_until_one_gets_its_own(small: Project, tmp_path: Path) -> None:
    project = new_project(tmp_path / "var")
    layout = Layout(project.var)
    endpoints = Endpoints(grpc_port=project.grpc_port, http_port=project.http_port, metrics_port=project.metrics_port)
    markers = {}
    for domain in ("shop", "news"):
        layout.releases(domain).mkdir(parents=True)
        markers[domain] = Marker(Release(small.var / "releases" / "ecommerce" / "1"), layout.releases(domain))

    shop, news = (shared_release(markers[domain], domain, 1, 1) for domain in ("shop", "news"))
    shared = {shop.manifest.steps[step].model for step in SHARED}
    assert shared == {news.manifest.steps[step].model for step in SHARED}
    both = {"shop", "news", "feedback", *(f"{domain}_{step}" for domain in markers for step in ("head", "topk"))}
    try:
        deploy(layout, shop, endpoints, gates=None)
        deploy(layout, news, endpoints, gates=None)
        assert set(loaded(project)) == {*both, *shared}
        assert (answering(project, "shop"), answering(project, "news")) == ("1", "1")

        second = shared_release(markers["shop"], "shop", 2, 2)
        new = {second.manifest.steps["encoder"].model}
        assert not new & shared
        assert second.manifest.steps["tokenizer"].model in shared
        deploy(layout, second, endpoints, gates=None)
        assert set(loaded(project)) == {*both, *shared, *new}
        assert (answering(project, "shop"), answering(project, "news")) == ("2", "1")

        assert roll_back(layout, "shop").answer.release == "1"
        deploy(layout, shared_release(markers["news"], "news", 2, 1), endpoints, gates=None)
        assert (answering(project, "shop"), answering(project, "news")) == ("1", "2")
        assert set(loaded(project)) == {*both, *shared, *new}, "one step away for the shop, which has not changed since"

        deploy(layout, shared_release(markers["shop"], "shop", 3, 1), endpoints, gates=None)
        assert (answering(project, "shop"), answering(project, "news")) == ("3", "2")
        assert set(loaded(project)) == {*both, *shared}
    finally:
        project.make("stop", check=False)
