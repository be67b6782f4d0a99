"""Read the pictures of a folder or an archive: <class>/<picture>, decoded once and kept."""

import contextlib
import hashlib
import io
import json
import os
import re
import stat
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

MAX_FILE_BYTES = 2**28  # of one picture file; a bigger one is no picture
MAX_TOTAL_BYTES = 2**33  # of all decoded pictures together; they live in memory
CACHE_FORMAT = 2  # part of the cache key: raise it when decoding changes
LAYOUT = "pictures must lie as <class>/<picture>, or as train/<class>/<picture> and test/<class>/<picture>"


class Pictures(NamedTuple):  # a source before it is split
    images: np.ndarray  # uint8 (N, C, H, W)
    labels: np.ndarray  # int64 (N,)
    is_test: np.ndarray  # bool (N,); empty where the source brings no test set
    class_names: tuple[str, ...]
    note: str


def read(path: Path, root: Path, image_size: int | None, progress: bool) -> Pictures:
    """Decode a folder or an archive, or read what an earlier call decoded."""
    key, entries = hashlib.sha256(f"{CACHE_FORMAT} {image_size} ".encode()), []
    if path.is_dir():  # keyed by names, sizes and times: reading every file would take as long as decoding it
        entries = listing(path)
        key.update(json.dumps([(name, s.st_size, s.st_mtime_ns) for name, s in entries]).encode())
    else:
        with open(path, "rb") as file:
            key.update(hashlib.file_digest(file, "sha256").digest())
    cached = root / f"pictures-{key.hexdigest()[:24]}.npz"
    pictures = _read_cache(cached)
    if pictures is None:
        from tqdm import tqdm

        size = sum(status.st_size for _, status in entries) or path.stat().st_size
        style = {"unit": "B", "unit_scale": True, "mininterval": 1, "disable": not progress}
        with tqdm(total=size, desc=f"decoding {path.name}", **style) as bar:
            pictures = _arrange(path, *_decode_all(path, _members(path, entries, bar), image_size))
        _write_cache(cached, pictures)
    return pictures._replace(note=f"{pictures.note} from {path.name}")


def _read_cache(file: Path) -> Pictures | None:
    try:
        with np.load(file, allow_pickle=False) as arrays:  # a zip, whose checksums are verified on reading
            names, note = json.loads(str(arrays["text"]))
            return Pictures(arrays["images"], arrays["labels"], arrays["is_test"], tuple(names), note)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(f"{file} cannot be read, decoding again: {error}", stacklevel=4)
        return None


def _write_cache(file: Path, pictures: Pictures) -> None:
    images, labels, is_test, *text = pictures
    partial = file.with_suffix(f".{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as out:
            np.savez(out, images=images, labels=labels, is_test=is_test, text=json.dumps(text))
        os.replace(partial, file)
    except OSError as error:
        warnings.warn(f"decoded pictures not kept, {file.parent} cannot be written: {error}", stacklevel=4)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def listing(path: Path) -> list[tuple[str, os.stat_result]]:
    """Every folder and file below, by its relative name."""
    found = []
    for parent, folders, files in os.walk(path, followlinks=True):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        found += [Path(parent, name) for name in [*folders, *files] if not _is_hidden(name)]
    return sorted((entry.relative_to(path).as_posix(), entry.stat()) for entry in found)


def _members(path: Path, listing: list, bar) -> Iterator[tuple[str, bytes | None]]:
    """Each file's name and bytes, each folder's name and None; in one pass, with nothing unpacked to disk."""
    if path.is_dir():
        for name, status in listing:
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
    if name.startswith(("/", "\\")) or name[1:2] == ":" or ".." in re.split(r"[/\\]", name):
        raise ValueError(f"{name!r} in {path} leads out of the archive; refused")
    if not plain:
        raise ValueError(f"{name!r} in {path} is a link or a device; only files and folders are read")
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{name!r} in {path} has {size} bytes, more than the {MAX_FILE_BYTES} for a picture")


def _zip_members(path: Path, file, bar) -> Iterator[tuple[str, bytes | None]]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            _check_member(path, info.filename, info.file_size, not stat.S_ISLNK(info.external_attr >> 16))
            yield info.filename, None if info.is_dir() else archive.read(info)
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


def _decode(data: bytes, image_size: int | None) -> tuple[np.ndarray, str]:
    """A picture file as (C, H, W), and its format."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as image:
        if image_size:
            image.draft(None, (2 * image_size, 2 * image_size))  # JPEG: decode no larger than needed
        mode = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}.get(image.mode)
        if mode is None:
            raise ValueError(f"mode {image.mode} is not grey (L) or RGB; see PIL's convert('RGB')")
        kind = f"{image.format}{_jpeg_quality(getattr(image, 'quantization', None))}"
        return to_array(ImageOps.exif_transpose(image).convert(mode), image_size), kind


def _jpeg_quality(tables: dict | None) -> str:
    """The quality a JPEG was written with, told from its luminance table, which libjpeg scales from a standard one.

    Source: ITU-T T.81, table K.1 (its 64 entries sum to 3688), and libjpeg's jpeg_quality_scaling.
    """
    if not tables:
        return ""  # no JPEG
    percent = 100 * sum(tables[0]) / 3688
    return f" quality {round(100 - percent / 2 if percent <= 100 else 5000 / percent)}"


def _decode_all(path: Path, members: Iterator, image_size: int | None) -> tuple[dict, set, set]:
    """Pictures (or what is wrong with them) by place, folders and formats.

    One thread: for pictures of this size two are slower, as the interpreter lock changes hands too often."""
    from PIL import Image

    entries, folders, formats, first, total = {}, set(), set(), None, 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for name, data in members:
            place = PurePosixPath(name).parts
            folder = place if data is None else place[:-1]
            if not any(map(_is_hidden, folder)):
                folders.add(folder)
            if data is None or any(map(_is_hidden, place)):
                continue
            try:
                picture, kind = _decode(data, image_size)
                first = first or (name, picture.shape)
                _check_alike(first, (name, picture.shape))
            except Exception as error:  # PIL has a dozen kinds; it counts only if this lies in a class folder
                entries[place] = error
                continue
            entries[place] = picture
            formats.add(kind)
            total += picture.nbytes
            if total > MAX_TOTAL_BYTES:
                raise ValueError(f"pictures in {path} take over {MAX_TOTAL_BYTES} bytes; give an image_size")
    return entries, folders, formats


def _check_alike(first: tuple, other: tuple) -> None:
    (name_a, a), (name_b, b) = sorted([first, other], key=lambda item: item[1])  # by channels, then size
    if a[0] != b[0]:
        raise ValueError(
            f"grey and colour are mixed: {name_a} is grey, {name_b} is colour; "
            "convert them to one, see PIL's convert('RGB') and convert('L')"
        )
    if a != b:
        sizes = f"{name_a} is {a[2]}x{a[1]}, {name_b} is {b[2]}x{b[1]}"
        raise ValueError(f"sizes differ: {sizes}; give image_size to make them equal")


def _arrange(path: Path, entries: dict, folders: set, formats: set) -> Pictures:
    """Read classes and test set from where the pictures lie."""
    reach = max([0, *map(len, entries), *(len(place) + 1 for place in folders)])
    skip, tops = 0, {place[0] for place in folders if place}
    while len(tops) == 1 and reach > skip + 2:  # an archive often wraps everything in one folder
        skip += 1
        tops = {place[skip] for place in folders if len(place) > skip}
    given = {"train", "test"} <= tops and reach > skip + 2
    depth = skip + (3 if given else 2)  # of a picture
    if not tops:
        raise ValueError(f"{path} has no class folders; {LAYOUT}")
    for place in sorted(folders):
        if len(place) >= depth or (given and not {*place[skip : skip + 1]} <= {"train", "test"}):
            raise ValueError(f"folder {'/'.join(place)} in {path} is out of place; {LAYOUT}")
    loose = sorted("/".join(place) for place in entries if len(place) < depth)
    if loose:
        text = f"files outside the class folders of {path} are ignored: {loose[0]} (of {len(loose)})"
        warnings.warn(text, stacklevel=4)
    places = sorted(place for place in entries if len(place) == depth)
    for place in places:
        if isinstance(entries[place], Exception):
            raise ValueError(f"cannot use {'/'.join(place)} in {path}: {entries[place]}") from entries[place]
    classes = {place for place in folders if len(place) == depth - 1}
    for empty in sorted(classes - {place[:-1] for place in places}):
        raise ValueError(f"class folder {'/'.join(empty)} in {path} has no pictures")
    names = sorted({place[-1] for place in classes})
    for part in ("train", "test") if given else ():
        for name in sorted(set(names) - {place[-1] for place in classes if place[skip] == part}):
            raise ValueError(f"{part}/ in {path} has no class {name!r}; train/ and test/ need the same ones")
    if len(names) < 2:
        raise ValueError(f"{path} has only the class {names[0]!r}; two or more are needed")
    labels = np.array([names.index(place[-2]) for place in places], np.int64)
    is_test = np.array([place[skip] == "test" for place in places if given], bool)
    note = f"{len(places)} {' and '.join(sorted(formats))} pictures"
    return Pictures(np.stack([entries[place] for place in places]), labels, is_test, tuple(names), note)


def to_array(image, image_size: int | None) -> np.ndarray:
    """A PIL picture as (C, H, W)."""
    from PIL import Image, ImageOps

    if image_size:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)  # antialiased in PIL
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)
