"""Command line of the serving room.

`python -m serving deploy|start|rollback|canary|releases|diff|watch|status|live|url|logs|stop`
"""

from __future__ import annotations

import datetime
import logging
from pathlib import Path
from typing import Any

import click

from . import process_tree, watcher
from .canary.commands import canary
from .canary.ensemble import canaries
from .deploy import deploy as make_live
from .embedded import Endpoints
from .errors import ReleaseError, ServerError, ServingError
from .feedback_model import probe_feedback, store_in_use
from .gates.gates import Gates, summary
from .layout import Layout
from .live_repository import LiveRepository
from .liveness import ask_domain
from .options import config_option, domain_option, domain_settings, overrides_argument, var_option, watch_option
from .probe import probe_release
from .release_commands import diff, releases, rollback
from .releases import ReleaseStore
from .server import MENDING_SECONDS, Server, tail
from .start import first_answer
from .start import start as start_server

PORT = click.IntRange(1, 65535)
BUSY = "others; too many wait for it to answer this command too"


@click.group(help=__doc__)
def main() -> None:
    """Gather the commands."""


for command in (rollback, releases, diff, canary):
    main.add_command(command)


@main.command()
@var_option
@domain_option
@click.option("--release", "number", type=int, help="Number of the release; the newest if left out.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 opens the server to the network.",
)
@click.option("--grpc-port", type=PORT, default=8001, show_default=True)
@click.option("--http-port", type=PORT, default=8000, show_default=True)
@click.option("--metrics-port", type=PORT, default=8002, show_default=True)
@config_option
@click.option("--force", is_flag=True, help="Publish the release though it does not pass a gate.")
@watch_option
@overrides_argument
def deploy(
    var: Path,
    domain: str,
    number: int | None,
    watched: bool,
    config: Path | None,
    force: bool,
    overrides: tuple[str, ...],
    **endpoints: Any,
) -> None:
    """Make a release live; start the server if none runs."""
    store = ReleaseStore(Layout(var).releases(domain))
    release = store.latest() if number is None else store.open(number)
    click.echo(f"deploying {domain} release {release.number} ({release.manifest.precision}) …")
    gates = Gates(domain_settings(config, domain, overrides).gates, force=force)
    deployment = make_live(Layout(var), release, Endpoints(**endpoints), gates=gates)
    for warning in deployment.warnings:
        click.echo(f"Warning: {warning}", err=True)
    for line in summary(gates.findings):
        click.echo(f"  {line}")
    forced = f", FORCED past {', '.join(deployment.forced)}" if deployment.forced else ""
    done = {
        "started": "server started",
        "published": f"published to the running server{forced}",
        "unchanged": "is live already, nothing to do",
    }[deployment.action]
    answer = deployment.answer
    took = f"first answer in {answer.milliseconds:.0f} ms" if answer else BUSY
    click.echo(f"release {deployment.release} answers at {deployment.endpoints.grpc_url} ({took}): {done}")
    try:
        probe_feedback(deployment.endpoints.grpc_url)
    except ServerError as error:  # recommendations do not wait for the feedback store to come back
        click.echo(f"Warning: {error.message}", err=True)
    if watched:
        watcher.start(Layout(var))


@main.command()
@var_option
@click.option("--host", help="Address to listen on; where the server listened last, as the ports, if left out.")
@click.option("--grpc-port", type=PORT)
@click.option("--http-port", type=PORT)
@click.option("--metrics-port", type=PORT)
@watch_option
def start(var: Path, watched: bool, **endpoints: Any) -> None:
    """Start the server again with what is live, canaries included; nothing is published, and a running one is left."""
    layout = Layout(var)
    done = start_server(layout, endpoints)
    url = done.endpoints.grpc_url
    if not done.is_new:
        if watched and not watcher.is_watching(layout):
            watcher.start(layout)
            click.echo(f"the server runs already at {url}; nobody watched it: watcher started")
        else:
            click.echo(f"the server runs already at {url}, nothing to do")
        return
    if watched:
        watcher.start(layout)
    for domain, number in done.live.items():
        try:
            milliseconds = first_answer(layout, domain, number, url)
        except ReleaseError as error:
            click.echo(f"Warning: nobody can tell whether {domain} release {number} answers: {error.message}", err=True)
        else:
            took = f"first answer in {milliseconds:.0f} ms" if milliseconds is not None else BUSY
            click.echo(f"{domain} release {number} answers at {url} ({took}): server started")
    for name in done.refused:
        click.echo(f"Warning: {name} could not be loaded; the live release answers everybody", err=True)


@main.command()
@var_option
def watch(var: Path) -> None:
    """Look after the server until it is stopped (`make deploy` and `make start` start this by themselves)."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    watcher.watch(Layout(var))


@main.command()
@var_option
def status(var: Path) -> None:
    """Say what runs and what answers; exit with 1 if something does not."""
    layout = Layout(var)
    state = Server(layout).require_state()
    tree = process_tree.processes(layout.shared_memory_prefix)
    uptime = datetime.datetime.now(datetime.timezone.utc) - datetime.datetime.fromisoformat(state.started)
    click.echo(f"server     process {state.pid}, {len(tree)} processes, up {str(uptime).split('.', maxsplit=1)[0]}")
    click.echo(
        f"memory     {process_tree.proportional_memory_bytes(tree) >> 20} MB (proportional set size of the whole tree)"
    )
    listening = state.endpoints
    click.echo(
        f"listening  {listening.host}: gRPC {listening.grpc_port}, HTTP {listening.http_port}, "
        f"metrics {listening.metrics_port}"
    )
    watching = "mends what breaks" if watcher.is_watching(layout) else "none: nobody mends what breaks"
    click.echo(f"watcher    {watching} (log: {layout.watcher_log})")
    repository = LiveRepository(layout.live)
    for domain in repository.domains():
        live = repository.live_release(domain)
        if live is not None:
            try:
                answer = ask_domain(listening.grpc_url, ReleaseStore(layout.releases(domain)).open(live.number))
            except ServerError as error:
                raise ServerError(f"{error.message}; run `make stop start` to start it afresh") from None
            says = f"a real instruction in {answer.milliseconds:.1f} ms" if answer else BUSY
            click.echo(f"{domain:<10} release {live.number} answers {says}")
    for one in canaries(repository):
        try:
            release = ReleaseStore(layout.releases(one.domain)).open(one.release)
            answer = probe_release(listening.grpc_url, release, model=one.model)
            says = f"answers in {answer.milliseconds:.1f} ms"
        except ServingError as error:  # whom it was meant for gets the live release's answers
            says = f"DOES NOT ANSWER: {error.message}"
        click.echo(f"{one.domain:<10} release {one.release} is the canary, for {100 * one.share:g} % of people, {says}")
    took = probe_feedback(listening.grpc_url)
    click.echo(f"feedback   can be stored in {store_in_use(layout, state.pid)}, said so in {took:.1f} ms")


@main.command()
@var_option
@domain_option
def live(var: Path, domain: str) -> None:
    """Print the folder of the release that is live."""
    layout = Layout(var)
    found = LiveRepository(layout.live).live_release(domain)
    if found is None:
        raise ServerError(f"no release of {domain} is live in {layout.var}; run `make deploy`")
    click.echo(ReleaseStore(layout.releases(domain)).open(found.number).path)


@main.command()
@click.option("--var", type=click.Path(path_type=Path, readable=False), default=Path("var"), show_default=True)
@click.option("--host", help="Address; where the server listens or listened last, as the port, if left out.")
@click.option("--grpc-port", type=PORT)
def url(var: Path, **told: Any) -> None:
    """Print where a client on this machine reaches the server: host:port of its gRPC service."""
    try:
        found = Server(Layout(var)).wanted_endpoints(told)
    except (OSError, ServerError):  # another user's VAR: who asks for a recommendation needs no right to it
        found = Endpoints.model_validate({name: value for name, value in told.items() if value is not None})
    click.echo(found.grpc_url)


@main.command()
@var_option
@click.option("--lines", type=int, default=50, show_default=True)
def logs(var: Path, lines: int) -> None:
    """Print the end of the server's log."""
    path = Layout(var).server_log
    click.echo(tail(path, lines))
    click.echo(f"(follow it: tail -f {path})", err=True)


@main.command()
@var_option
def stop(var: Path) -> None:
    """Stop the server after it has answered what is in flight, and leave nothing behind."""
    server = Server(Layout(var))
    with server.lock(patience_seconds=MENDING_SECONDS):
        click.echo(server.stop())


if __name__ == "__main__":
    main()
