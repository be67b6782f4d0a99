"""Pictures as uint8 tensors with stratified, seeded train, validation and test splits."""

import difflib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from resnet_lib.decoding import to_array
from resnet_lib.paths import cache_folder
from resnet_lib.pictures import COLOURS, Pictures, gathered, identity_of, read

TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion_mnist": "FashionMNIST"}
KNOWN = ("digits", *TORCHVISION)
LARGE = 2**28  # bytes of pictures from which on splits lie in files, of which a batch reads what it needs
TEST_FRACTION = 0.2  # of the pictures, where the source brings no test set of its own


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
        names = ", ".join(self.class_names[:10]) + (", …" if len(self.class_names) > 10 else "")
        text = (
            f"{self.name} ({self.note}), {shape[2]}×{shape[1]} pixels: {sizes['train']:,} pictures to train on, "
            f"{sizes['val']:,} to choose by, {sizes['test']:,} to test once; {len(self.class_names)} classes: {names}."
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


def load(
    name_or_path: str | Path,
    *,
    root: str | Path | None = None,
    mirror: str | None = None,
    train_size: int = 0,
    val_fraction: float = 0.1,
    seed: int = 0,
    image_size: int | None = None,
    colour: str = "auto",
    labels: str | Path | None = None,
    progress: bool = True,
) -> Dataset:
    """Load a known data set, a folder of class folders, or an archive of one.

    The pictures of a split are in a random order in which every stretch has the classes in proportion.
    So `train.images[:n]` is a stratified sample, and a smaller `train_size` is the start of a larger one.

    Args:    name_or_path: digits, cifar10, cifar100, fashion_mnist, or a path to `<class>/<picture>`, or to
                 `train/<class>/<picture>` beside the like in `test/`, `val/` (or `valid/`) or both: a folder,
                 .tar, .tar.gz, .tar.xz or .zip. A known name wins over a file of that name; write `./digits`.
             root: folder for downloads and decoded pictures; default RESNET_LIB_CACHE, else the user's cache.
             mirror: http address of a folder with the published archives; their checksums still must match.
             train_size: pictures to train on; 0 takes all that validation and test leave.
             val_fraction: share of the training part that becomes the validation split.
             image_size: side in pixels; pictures are cropped to the central square and resized, antialiased.
             colour: of a path's pictures. "auto" takes grey or RGB as they are, and refuses what would have to be
                 converted; "rgb" and "grey" convert: transparency on white, 16 bits scaled, CMYK by its profile.
             labels: a CSV with the columns file and label, for a path whose folders are no classes.
    Returns: the splits. A test or validation set that the source brings is kept, the same for every seed; otherwise
             they are 20 % of the pictures and val_fraction of the training part, drawn by seed.
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
    if colour not in COLOURS:
        raise ValueError(f"colour={colour!r} is not one of {', '.join(map(repr, COLOURS))}")
    if name in KNOWN and (labels or colour != "auto"):
        raise ValueError(f"labels and colour are for pictures of your own; {name!r} is known as it is")
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
        listed = Path(labels).expanduser() if labels else None
        pictures = read(path, root, image_size=image_size, colour=colour, labels=listed, progress=progress)
        name = re.sub(r"\.(tar(\.\w+)?|t[gx]z|zip)$", "", path.name)

    indices = _split(pictures, train_size, val_fraction, seed)
    identity = pictures.identity or identity_of(pictures.images, pictures.class_names)
    for array in (pictures.labels, *indices):
        identity.update(memoryview(np.ascontiguousarray(array, array.dtype.newbyteorder("<"))))
    names, fingerprint = pictures.class_names, identity.hexdigest()[:16]
    train, val, test = (
        Split(
            _chosen(pictures.images, part, root / f"{fingerprint}-{where}.npy"), torch.from_numpy(pictures.labels[part])
        )
        for where, part in zip(("train", "val", "test"), indices, strict=True)
    )
    note = pictures.note
    if len(pictures.part) and 2 not in pictures.part:
        note += f", which bring no test set: {TEST_FRACTION:.0%} of train/ are kept to test"
    return Dataset(name, train, val, test, names, fingerprint, *_mean_std(train.images), note)


def _chosen(images: np.ndarray, rows: np.ndarray, file: Path) -> torch.Tensor:
    """Some pictures, in this order: in memory or, of a large source, as a view of a file."""
    if len(rows) * images[0].nbytes <= LARGE:
        return torch.from_numpy(np.ascontiguousarray(images[rows]))
    if not file.exists():
        partial = file.with_suffix(f".{os.getpid()}.partial")
        try:
            gathered(images.transpose(0, 2, 3, 1), rows, partial)
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)
    return torch.from_numpy(np.load(file, mmap_mode="c")).permute(0, 3, 1, 2)


def _mixed_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Random order of all pictures in which every stretch has the classes in proportion."""
    order = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)  # a class spreads evenly over [0, 1]
    return order[np.argsort(place[order], kind="stable")]  # stable: ties stay in random order


def _split(pictures: Pictures, train_size: int, val_fraction: float, seed: int) -> list[np.ndarray]:
    """Indices of train, val and test: stretches of a mixed order, and therefore stratified."""
    labels, names = pictures.labels, pictures.class_names
    part = pictures.part if len(pictures.part) else np.zeros(len(labels), np.int8)

    def mixed(which: int, by: int) -> np.ndarray:
        members = np.flatnonzero(part == which)
        return members[_mixed_order(labels[members], by)]

    order, val, test = mixed(0, seed), mixed(1, 0), mixed(2, 0)  # what is given is the same for every seed
    if not len(test):
        test, order = np.split(order, [int(len(order) * TEST_FRACTION + 0.5)])
    train = order
    if not len(val):
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


def _digits() -> Pictures:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # from 17 levels, 0..16
    names = tuple(map(str, digits.target_names))
    note = "handwritten digits, 8x8, from scikit-learn"
    return Pictures(images, digits.target.astype(np.int64), np.zeros(0, np.int8), names, note)


def _torchvision(name: str, root: Path, mirror: str | None) -> Pictures:
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
    part = np.where(np.arange(len(labels)) >= len(train), 2, 0).astype(np.int8)
    note = f"{cls.__name__}, the published archive"
    return Pictures(images, labels, part, tuple(train.classes), note)


def _resized(pictures: Pictures, image_size: int | None) -> Pictures:
    if image_size is None:
        return pictures
    from PIL import Image

    rows = np.ascontiguousarray(pictures.images.transpose(0, 2, 3, 1))
    rows = rows[..., 0] if rows.shape[3] == 1 else rows
    return pictures._replace(images=np.stack([to_array(Image.fromarray(row), image_size) for row in rows]))
