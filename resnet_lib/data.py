"""Pictures as uint8 tensors with stratified, seeded train, validation and test splits."""

import contextlib
import difflib
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
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch

from resnet_lib.paths import cache_folder

TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion_mnist": "FashionMNIST"}
KNOWN = ("digits", *TORCHVISION)
TEST_FRACTION = 0.2  # of the pictures, where the source brings no test set of its own
MAX_FILE_BYTES = 2**28  # of one picture file; a bigger one is no picture
MAX_TOTAL_BYTES = 2**33  # of all decoded pictures together; they live in memory
CACHE_FORMAT = 2  # part of the cache key: raise it when decoding changes
LAYOUT = "pictures must lie as <class>/<picture>, or as train/<class>/<picture> and test/<class>/<picture>"


@dataclass(frozen=True)
class Split:
    images: torch.Tensor  # uint8 (N, C, H, W)
    labels: torch.Tensor  # int64 (N,)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    name: str
    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    fingerprint: str  # of pictures, labels and split; the same on every machine
    mean: torch.Tensor  # float32 (C,): over all pixels of train, in units of images / 255
    std: torch.Tensor  # float32 (C,): the pixel std, not the mean of the per-image stds
    note: str  # what the pictures are and where they come from

    def about(self) -> dict:
        """What a record says of its data."""
        sizes = {name: len(getattr(self, name)) for name in ("train", "val", "test")}
        shape = list(self.train.images.shape[1:])
        text = (
            f"{self.name} ({self.note}), {shape[2]}×{shape[1]} pixels: {sizes['train']:,} pictures to train on, "
            f"{sizes['val']:,} to choose by, {sizes['test']:,} to test once."
        )
        facts = {"name": self.name, "note": self.note, "fingerprint": self.fingerprint}
        return facts | sizes | {"shape": shape, "classes": len(self.class_names), "text": text}


def with_test_size(dataset: Dataset, test_size: int) -> Dataset:
    """The same pictures, of which only the first `test_size` of the test split are judged; 0 keeps all.

    Raises: ValueError for a negative size, or one beyond the split.
    """
    if not 0 <= test_size <= len(dataset.test):
        raise ValueError(f"test_size={test_size} must lie between 0, which takes all, and {len(dataset.test)}")
    count = test_size or len(dataset.test)
    return replace(dataset, test=Split(dataset.test.images[:count], dataset.test.labels[:count]))


class _Pictures(NamedTuple):  # a source before it is split
    images: np.ndarray  # uint8 (N, C, H, W)
    labels: np.ndarray  # int64 (N,)
    is_test: np.ndarray  # bool (N,); empty where the source brings no test set
    class_names: tuple[str, ...]
    note: str


def load(
    name_or_path: str | Path,
    *,
    root: str | Path | None = None,
    mirror: str | None = None,
    train_size: int = 0,
    val_fraction: float = 0.1,
    seed: int = 0,
    image_size: int | None = None,
    progress: bool = True,
) -> Dataset:
    """Load a known data set, a folder of class folders, or an archive of one.

    The pictures of a split are in a random order in which every stretch has the classes in proportion.
    So `train.images[:n]` is a stratified sample, and a smaller `train_size` is the start of a larger one.

    Args:    name_or_path: digits, cifar10, cifar100, fashion_mnist, or a path to `<class>/<picture>`, or to
                 `train/<class>/<picture>` and `test/<class>/<picture>`: a folder, .tar, .tar.gz, .tar.xz or
                 .zip. A known name wins over a file of that name; write `./digits` for the file.
             root: folder for downloads and decoded pictures; default RESNET_LIB_CACHE, else the user's cache.
             mirror: http address of a folder with the published archives; their checksums still must match.
             train_size: pictures to train on; 0 takes all that validation and test leave.
             val_fraction: share of the training part that becomes the validation split.
             image_size: side in pixels; pictures are cropped to the central square and resized, antialiased.
    Returns: the splits. A test set that the source brings is kept, the same for every seed; otherwise it is
             20 % of the pictures, drawn by seed.
    Raises:  ValueError, FileNotFoundError or OSError naming the file, class or value at fault.
    """
    name = os.fspath(name_or_path)
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction={val_fraction} must lie between 0 and 1, both excluded")
    if train_size < 0 or (image_size is not None and image_size < 1):
        raise ValueError(f"train_size={train_size} must be 0 or more, image_size={image_size} 1 or more")
    if mirror and name not in TORCHVISION:
        raise ValueError(f"mirror={mirror!r} serves {', '.join(TORCHVISION)}; {name!r} is not downloaded")
    if mirror and not mirror.startswith(("http://", "https://")):
        raise ValueError(f"mirror={mirror!r} must be an http address; put a local archive into root instead")
    root = Path(root).expanduser() if root else cache_folder()
    if name in KNOWN:
        pictures = _digits() if name == "digits" else _torchvision(name, root, mirror)
        pictures = _resized(pictures, image_size)
    else:
        path = Path(name).expanduser()
        if not name or not path.exists():
            siblings = os.listdir(path.parent) if path.parent.is_dir() else []
            close = difflib.get_close_matches(path.name, [*KNOWN, *siblings])
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise FileNotFoundError(f"{name!r} is no existing path and not one of {', '.join(KNOWN)}{hint}")
        path = Path(os.path.abspath(path))  # has a name, even for ".", and a link keeps its own
        pictures = _from_path(path, root, image_size, progress)
        name = re.sub(r"\.(tar(\.\w+)?|t[gx]z|zip)$", "", path.name)

    indices = _split(pictures, train_size, val_fraction, seed)
    images, labels = torch.from_numpy(pictures.images), torch.from_numpy(pictures.labels)
    train, val, test = (Split(images[i], labels[i]) for i in map(torch.from_numpy, indices))
    identity = hashlib.sha256(json.dumps([pictures.images.shape, pictures.class_names]).encode())
    for array in (pictures.images, pictures.labels, *indices):
        identity.update(memoryview(np.ascontiguousarray(array, array.dtype.newbyteorder("<"))))
    names, note, fingerprint = pictures.class_names, pictures.note, identity.hexdigest()[:16]
    return Dataset(name, train, val, test, names, fingerprint, *_mean_std(train.images), note)


def _mixed_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Random order of all pictures in which every stretch has the classes in proportion."""
    order = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)  # a class spreads evenly over [0, 1]
    return order[np.argsort(place[order], kind="stable")]  # stable: ties stay in random order


def _split(pictures: _Pictures, train_size: int, val_fraction: float, seed: int) -> list[np.ndarray]:
    """Indices of train, val and test: stretches of a mixed order, and therefore stratified."""
    labels, names = pictures.labels, pictures.class_names
    if len(pictures.is_test):
        given, rest = np.flatnonzero(pictures.is_test), np.flatnonzero(~pictures.is_test)
        test = given[_mixed_order(labels[given], 0)]  # every seed has the same test set in the same order
        order = rest[_mixed_order(labels[rest], seed)]
    else:
        order = _mixed_order(labels, seed)
        test, order = np.split(order, [int(len(order) * TEST_FRACTION + 0.5)])
    val, train = np.split(order, [int(len(order) * val_fraction + 0.5)])
    for part, indices in (("test", test), ("validation", val), ("training", train)):
        for label in np.setdiff1d(np.arange(len(names)), labels[indices]):
            raise ValueError(
                f"class {names[label]!r} has too few pictures, {(labels == label).sum()}, for one in the "
                f"{part} split at val_fraction={val_fraction}; add pictures, or change val_fraction"
            )
    if train_size > len(train):
        raise ValueError(f"train_size={train_size} is more than the {len(train)} left by validation and test")
    need = 1 + max(int(np.argmax(labels[train] == label)) for label in range(len(names)))
    if 0 < train_size < need:
        raise ValueError(f"train_size={train_size} leaves a class without a picture; it takes {need} or more")
    return [train[: train_size or None], val, test]


def _mean_std(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased std of each channel, from counts of the 256 values: exact, so the same everywhere."""
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for chunk in images.split(512):
        for channel, row in enumerate(counts):
            row += torch.bincount(chunk[:, channel].flatten(), minlength=256)
    value, share = torch.arange(256).double() / 255, counts.double() / counts.sum(1, keepdim=True)
    mean = (share * value).sum(1)
    return mean.float(), (share * (value - mean[:, None]) ** 2).sum(1).sqrt().float()


def _digits() -> _Pictures:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # from 17 levels, 0..16
    names = tuple(map(str, digits.target_names))
    note = "handwritten digits, 8x8, from scikit-learn"
    return _Pictures(images, digits.target.astype(np.int64), np.zeros(0, bool), names, note)


def _torchvision(name: str, root: Path, mirror: str | None) -> _Pictures:
    """Fetch with torchvision, once. It unpickles CIFAR's files, only after verifying the published md5."""
    import torchvision

    cls = getattr(torchvision.datasets, TORCHVISION[name])
    if mirror:
        base = mirror.rstrip("/") + "/"
        address = {"mirrors": [base]} if hasattr(cls, "mirrors") else {"url": base + cls.filename}
        cls = type(cls.__name__, (cls,), address)  # same name: it is part of the folder that torchvision uses
    source = cls.mirrors[0] if hasattr(cls, "mirrors") else cls.url
    try:
        root.mkdir(parents=True, exist_ok=True)
        train, test = (cls(root, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:
        if "corrupted" in str(error):
            raise ValueError(f"{name} from {source} has not the published checksum: {error}") from error
        raise OSError(f"{name} cannot be fetched from {source} into {root}: {error}; try a mirror") from error
    images = np.concatenate([np.asarray(part.data) for part in (train, test)])
    images = images[:, None] if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    labels = np.concatenate([np.asarray(part.targets, np.int64) for part in (train, test)])
    is_test, note = np.arange(len(labels)) >= len(train), f"{cls.__name__}, the published archive"
    return _Pictures(images, labels, is_test, tuple(train.classes), note)


def _resized(pictures: _Pictures, image_size: int | None) -> _Pictures:
    if image_size is None:
        return pictures
    from PIL import Image

    rows = np.ascontiguousarray(pictures.images.transpose(0, 2, 3, 1))
    rows = rows[..., 0] if rows.shape[3] == 1 else rows
    return pictures._replace(images=np.stack([_to_array(Image.fromarray(row), image_size) for row in rows]))


def _to_array(image, image_size: int | None) -> np.ndarray:
    """A PIL picture as (C, H, W)."""
    from PIL import Image, ImageOps

    if image_size:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)  # antialiased in PIL
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


def _from_path(path: Path, root: Path, image_size: int | None, progress: bool) -> _Pictures:
    """Decode a folder or an archive, or read what an earlier call decoded."""
    key, listing = hashlib.sha256(f"{CACHE_FORMAT} {image_size} ".encode()), []
    if path.is_dir():  # keyed by names, sizes and times: reading every file would take as long as decoding it
        listing = _listing(path)
        key.update(json.dumps([(name, s.st_size, s.st_mtime_ns) for name, s in listing]).encode())
    else:
        with open(path, "rb") as file:
            key.update(hashlib.file_digest(file, "sha256").digest())
    cached = root / f"pictures-{key.hexdigest()[:24]}.npz"
    pictures = _read_cache(cached)
    if pictures is None:
        from tqdm import tqdm

        size = sum(status.st_size for _, status in listing) or path.stat().st_size
        style = {"unit": "B", "unit_scale": True, "mininterval": 1, "disable": not progress}
        with tqdm(total=size, desc=f"decoding {path.name}", **style) as bar:
            pictures = _arrange(path, *_decode_all(path, _members(path, listing, bar), image_size))
        _write_cache(cached, pictures)
    return pictures._replace(note=f"{pictures.note} from {path.name}")


def _read_cache(file: Path) -> _Pictures | None:
    try:
        with np.load(file, allow_pickle=False) as arrays:  # a zip, whose checksums are verified on reading
            names, note = json.loads(str(arrays["text"]))
            return _Pictures(arrays["images"], arrays["labels"], arrays["is_test"], tuple(names), note)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(f"{file} cannot be read, decoding again: {error}", stacklevel=4)
        return None


def _write_cache(file: Path, pictures: _Pictures) -> None:
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


def _listing(path: Path) -> list[tuple[str, os.stat_result]]:
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
        return _to_array(ImageOps.exif_transpose(image).convert(mode), image_size), kind


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


def _arrange(path: Path, entries: dict, folders: set, formats: set) -> _Pictures:
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
    return _Pictures(np.stack([entries[place] for place in places]), labels, is_test, tuple(names), note)
