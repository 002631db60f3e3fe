"""A run becomes a domain's next release: a folder that is whole or not there."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from export.errors import ExportError, VerificationError
from export.kept_graph import KeptGraph, ReadyGraphs
from export.model_config import MODEL_REPOSITORY
from export.release_builder import ReleaseBuilder
from export.reuse import TRAINING_ROOM, encoder_origin, libraries_and_code, reuse_encoder
from export.settings import ExportSettings, Precision, ServingSettings, read_settings
from export.shared_steps import borrowed_encoder
from export.step_code import STEPS_CODE
from export.tensorrt.module import gpu_failures_in_one_line, load_tensorrt
from serving.canary.ensemble import canary_name
from serving.canary.journal import CanaryJournal
from serving.engines.fingerprint import Fingerprint
from serving.errors import ReleaseError
from serving.files import sha256_of
from serving.journal import Journal
from serving.layout import Layout
from serving.releases import Release, ReleaseStore
from training.atomic import new_folder
from training.config import DomainConfig
from training.run import Run


@dataclass(frozen=True)
class Exported:
    """What `export_release` gives back.

    Attributes:
        release: the release.
        is_new: False if the newest release was made of just the same.
        taken_from: the release that its encoder was taken over from; None if it was made for this one.
    """

    release: Release
    is_new: bool
    taken_from: int | None = None


SCRATCH = ".graphs-"
"""How the folders begin that graphs are made in."""
OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def _one_line_of_disk_errors(folder: Path) -> Iterator[None]:
    """A disk that is full, or a folder that may not be written: no release is made, and half of one is not left.

    The releases' folder is named where the error names no file.
    """
    try:
        yield
    except OSError as error:
        where, what = error.filename or folder, error.strerror or str(error)
        if isinstance(error, shutil.Error):  # a folder's copy: of each file that failed, source, target and why
            _, where, what = error.args[0][0]
        elif error.errno is None:  # numpy's, which counts what it could write
            what = f"the disk did not take all of a file ({what})"
        unclear = error.errno is None or error.errno in OF_THE_DISK
        advice = ": free some space or check the rights" if unclear else ""
        raise ExportError(f"{where}: {what}; no release was made{advice}") from error


@gpu_failures_in_one_line()
def export_release(
    run: Run,
    config: DomainConfig,
    layout: Layout,
    precision: Precision,
    *,
    reuse: bool = True,
    say: Callable[[str], object] = lambda _: None,
) -> Exported:
    """Make a run into the domain's next release, unless the newest is of the same run, settings and code, and whole.

    The encoder is taken over from a release that has the same one, where there is one; what can differ is verified.

    Args:
        run: what training made.
        config: the domain's config as it is now; of it, the sections `serving` and `export` count here.
        layout: where releases lie.
        precision: of the encoder's graph.
        reuse: whether an earlier release's encoder may be taken over, or the FP32 graph that an export has kept;
            without it there always is a new release.
        say: is told, a line each, what was not taken over that might have been, and what is waited for.

    Raises:
        VerificationError: the graph differs from torch by more than the budget, or something else of the release is
            not the run's; no release is made, the reports are kept in the log folder.
        ExportError: the run cannot be exported, or the release not written.
    """
    serving, settings = read_settings(config, precision)
    folder = layout.releases(run.domain)
    reports = layout.var / "logs" / f"verification-{run.domain}-{precision}.md"
    with _one_line_of_disk_errors(folder), _exclusive(folder, say), _kept_reports(reports):
        for left in folder.glob(f"{SCRATCH}*"):  # by an export that was killed: this one has the lock
            shutil.rmtree(left, ignore_errors=True)
        store = ReleaseStore(folder)
        releases = _releases(store)
        borrowed = borrowed_encoder(layout, settings.encoder_from, precision) if settings.encoder_from else None
        fingerprint = _fingerprint(run, precision, serving, settings, borrowed)
        if reuse and (newest := _up_to_date(store, fingerprint, say)):
            return Exported(newest, is_new=False)
        number = _next_number(folder, layout, run.domain)
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as scratch:
            origin = encoder_origin(run, precision, serving, settings, number, borrowed)
            graphs, kept = None, None
            if reuse:
                graphs = reuse_encoder(run, precision, serving, settings, origin, releases, layout.var, say)
            if graphs is None:
                kept = _kept_graph(run, serving, settings, layout) if reuse and borrowed is None else None
                ready = ReadyGraphs(borrowed, kept)
                from export.graphs import build_encoder  # noqa: PLC0415 - loads torch, which taking over needs not

                graphs = build_encoder(run, precision, serving, settings, origin, Path(scratch), layout.var, ready)
            with new_folder(folder / str(number)) as staged:
                builder = ReleaseBuilder(run, serving, settings, number, releases, staged, layout.var)
                builder.build(graphs, precision, fingerprint).write(staged)
            if kept is not None and graphs.fp32 is not None:  # last, when nothing else wants the room
                kept.keep(*graphs.fp32)
        return Exported(store.open(number), is_new=True, taken_from=graphs.taken_from)


@contextmanager
def _exclusive(folder: Path, say: Callable[[str], object]) -> Iterator[None]:
    """One export a domain at a time; a dead exporter's lock is gone with it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another export of {folder.name} is running; this one goes on when it is done ({folder / '.lock'})")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def _kept_reports(path: Path) -> Iterator[None]:
    """What was measured before a verification failed is kept, and the error says where."""
    try:
        yield
    except VerificationError as error:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(one.markdown() for one in (*error.before, error.report)), encoding="utf-8")
        raise VerificationError(error.report, before=error.before, advice=error.advice, kept_at=path) from None


def _up_to_date(store: ReleaseStore, fingerprint: str, say: Callable[[str], object]) -> Release | None:
    """The newest release, if it was made of just this and is what its manifest says: else `deploy` would refuse it."""
    numbers = store.numbers()
    if not numbers:
        return None
    newest = store.open(numbers[-1])
    try:
        if newest.manifest.export_fingerprint != fingerprint:
            return None
        newest.manifest.verify(newest.path)
    except ReleaseError as error:
        say(f"release {newest.number} is damaged, it counts as none: {error.message.partition('; ')[0]}")
        return None
    return newest


def _releases(store: ReleaseStore) -> list[Release]:
    """The releases, newest first, whose unchanged steps keep their versions; one without a manifest is none."""
    found = []
    for number in reversed(store.numbers()):
        release = store.open(number)
        try:
            release.manifest  # noqa: B018 - read, and so checked, here
        except ReleaseError:
            continue
        found.append(release)
    return found


def _next_number(folder: Path, layout: Layout, domain: str) -> int:
    """A number that no release has, nor one that was removed after it had answered or while the server still has it."""
    live = [layout.live / domain, layout.live / canary_name(domain)]
    used = {int(path.name) for one in (folder, *live) for path in one.glob("*") if path.name.isdecimal()}
    used.update(one.release for one in Journal(layout.journal(domain)).publications())
    used.update(one.release for one in CanaryJournal(layout.canary_journal(domain)).events())
    return max(used, default=0) + 1


def _kept_graph(run: Run, serving: ServingSettings, settings: ExportSettings, layout: Layout) -> KeptGraph:
    """Where the FP32 graph of this very run may lie, held against torch on the same texts by the same code."""
    fp32, code = encoder_origin(run, "fp32", serving, settings, number=1), hashlib.sha256()
    _add_code(code, (TRAINING_ROOM, STEPS_CODE))
    made_of = (run.run_id, run.manifest.fingerprint, fp32.fingerprint, fp32.texts, code.hexdigest())
    return KeptGraph(layout.var, run.domain, made_of)


def _fingerprint(
    run: Run, precision: Precision, serving: ServingSettings, settings: ExportSettings, borrowed: Path | None
) -> str:
    """Of all that determines a release's content: run, settings, libraries, what code makes it and what it ships."""
    digest = hashlib.sha256()
    for part in (
        run.run_id,
        run.manifest.fingerprint,
        precision,
        serving.model_dump_json(),
        settings.model_dump_json(),
        sha256_of(borrowed) if borrowed else "",
        # An engine is of one machine: the same export elsewhere is another release.
        str(Fingerprint.here(load_tensorrt().__version__)) if precision.startswith("trt-") else "",
        *libraries_and_code(),
    ):
        digest.update(part.encode() + b"\0")
    _add_code(digest, (STEPS_CODE, MODEL_REPOSITORY))
    return digest.hexdigest()


def _add_code(digest: hashlib._Hash, roots: Sequence[Path]) -> None:
    for root in roots:
        for path in sorted(root.rglob("*")):
            if path.suffix in {".py", ".pbtxt"}:
                digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
