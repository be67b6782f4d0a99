"""The files of a folder or an archive, in one pass, with nothing unpacked to disk and nothing let out of it."""

import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_BYTES = 2**28  # of one picture file; a bigger one is no picture
JUNK = ("__macosx", "thumbs.db", "desktop.ini", "@eadir")  # what other programs leave among pictures


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in JUNK


def listing(path: Path) -> list[tuple[str, os.stat_result]]:
    """Every folder and file below, by its relative name."""
    found = []
    for parent, folders, files in os.walk(path, followlinks=True):
        folders[:] = [name for name in folders if not is_hidden(name)]
        found += [Path(parent, name) for name in [*folders, *files] if not is_hidden(name)]
    return sorted((entry.relative_to(path).as_posix(), entry.stat()) for entry in found)


def members(path: Path, entries: list, bar) -> Iterator[tuple[str, bytes | None]]:
    """Each file's name and bytes, each folder's name and None; in one pass, with nothing unpacked to disk."""
    if path.is_dir():
        for name, status in entries:
            is_folder = stat.S_ISDIR(status.st_mode)
            _check_member(path, name, status.st_size, is_folder or stat.S_ISREG(status.st_mode))
            yield name, None if is_folder else (path / name).read_bytes()
            bar.update(status.st_size)
        return
    try:
        with open(path, "rb") as file:
            is_zip = file.read(2) == b"PK"
            file.seek(0)
            yield from (_zip_members if is_zip else _tar_members)(path, file, bar)
    except (ValueError, PermissionError):
        raise
    except Exception as error:  # each compression has its own
        raise ValueError(f"{path} is cut off or damaged: {error}") from error


def _check_member(path: Path, name: str, size: int, plain: bool) -> None:
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", name) or ".." in re.split(r"[/\\]", name):
        raise ValueError(f"{name!r} in {path} leads out of the archive; refused")
    if not plain:
        raise ValueError(f"{name!r} in {path} is a link or a device; only files and folders are read")
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{name!r} in {path} has {size} bytes, more than the {MAX_FILE_BYTES} for a picture")


def _zip_members(path: Path, file, bar) -> Iterator[tuple[str, bytes | None]]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            _check_member(path, info.filename, info.file_size, not stat.S_ISLNK(info.external_attr >> 16))
            if info.flag_bits & 1:
                raise ValueError(f"{info.filename!r} in {path} is encrypted; make an archive without a password")
            name = info.filename.replace("\\", "/")  # some programs for Windows write it so
            yield name, None if name.endswith("/") else archive.read(info)
            bar.update(info.compress_size)


def _tar_members(path: Path, file, bar) -> Iterator[tuple[str, bytes | None]]:
    try:
        archive = tarfile.open(fileobj=file)  # noqa: SIM115 - closed by the with below
    except tarfile.ReadError as error:
        raise ValueError(f"{path} is no .tar, .tar.gz, .tar.xz or .zip: {error}") from error
    with archive:
        for info in archive:
            _check_member(path, info.name, info.size, info.isfile() or info.isdir())
            yield info.name, None if info.isdir() else archive.extractfile(info).read()
            bar.update(file.tell() - bar.n)
        # tarfile takes a missing end mark for the end, and xz and gzip verify their checksum at the very end
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(512) != bytes(512):
            raise EOFError("the end mark is missing")
        archive.fileobj.read(2**24)
