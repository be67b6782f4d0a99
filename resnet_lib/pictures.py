"""Read the pictures of a folder or an archive: decoded once, arranged by class and split, and kept."""

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from resnet_lib.archives import is_hidden, listing, members

MAX_TOTAL_BYTES = 2**36  # of all decoded pictures together; they lie in a file
IN_MEMORY = 2**28  # bytes of decoded pictures; more of them go to a file
CHUNK = 4096  # pictures that are copied at a time
CACHE_FORMAT = 4  # part of the cache key: raise it when decoding changes
DECODERS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # others start programs, or read no pictures
COLOURS = ("auto", "rgb", "grey")
BACKGROUND = "white"  # behind what is transparent
SPLITS = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "test": 2, "testing": 2}
LAYOUT = (
    "pictures must lie as <class>/<picture>, or as train/<class>/<picture> beside test/<class>/<picture>, "
    "val/<class>/<picture> or both, or in any way with labels=<a CSV of file,label>"
)


class Pictures(NamedTuple):  # a source before it is split
    images: np.ndarray  # uint8 (N, C, H, W); of a path a view of a file, whose channels lie last
    labels: np.ndarray  # int64 (N,)
    part: np.ndarray  # int8 (N,): 0 train, 1 val, 2 test; empty where the source is not split
    class_names: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class _Decoded:
    shape: tuple[int, ...] | None  # (C, H, W); None where it cannot be used
    row: int = 0  # where it lies among the frames of its shape
    kind: str = ""  # format and quality
    changes: tuple[str, ...] = ()  # what was done to it
    problem: str = ""
    needs_colour: bool = False  # colour="rgb" or "grey" would take it


def read(
    path: Path,
    root: Path,
    *,
    image_size: int | None = None,
    colour: str = "auto",
    labels: Path | None = None,
    progress: bool = True,
) -> Pictures:
    """Decode a folder or an archive, or take what an earlier call decoded into `root`.

    Args: image_size: side of the central square in pixels; colour, labels: as `data.load` says.
    Raises: ValueError naming the file, class or folder at fault.
    """
    key, entries = hashlib.sha256(f"{CACHE_FORMAT} {image_size} {colour} ".encode()), []
    if path.is_dir():  # keyed by names, sizes and times: reading every file would take as long as decoding it
        entries = listing(path)
        key.update(json.dumps([(name, s.st_size, s.st_mtime_ns) for name, s in entries]).encode())
    else:
        with open(path, "rb") as file:
            key.update(hashlib.file_digest(file, "sha256").digest())
    given = _labels(labels) if labels else None
    key.update(json.dumps(given).encode())
    cached = root / f"pictures-{key.hexdigest()[:24]}"
    pictures = _read_cache(cached)
    if pictures is None:
        from tqdm import tqdm

        size = sum(status.st_size for _, status in entries) or path.stat().st_size
        style = {"unit": "B", "unit_scale": True, "mininterval": 1, "disable": not progress}
        with _Frames(root) as frames:
            with tqdm(total=size, desc=f"decoding {path.name}", **style) as bar:
                found, folders = _decode_all(path, members(path, entries, bar), image_size, colour, frames)
            arranged = _by_list(path, found, given, labels) if given else _arrange(path, found, folders)
            pictures = _kept(cached, frames, *arranged)
    return pictures._replace(note=f"{pictures.note} from {path.name}")


class _Frames:
    """Decoded pictures of each shape, their channels last: in memory, and in a file where they are many."""

    def __init__(self, folder: Path):
        self.folder = folder if folder.is_dir() else None  # else among the temporary files
        self.files, self.counts, self.in_file = {}, Counter(), set()

    def __enter__(self) -> "_Frames":
        return self

    def __exit__(self, *_) -> None:
        for file in self.files.values():
            file.close()

    def add(self, image: np.ndarray) -> int:
        """Append a picture, (C, H, W); its row among those of its shape."""
        shape = image.shape
        if shape not in self.files:
            self.files[shape] = tempfile.SpooledTemporaryFile(dir=self.folder)  # noqa: SIM115 - closed by __exit__
        if self.counts[shape] * image.nbytes > IN_MEMORY and shape not in self.in_file:
            self.files[shape].rollover()
            self.in_file.add(shape)
        self.files[shape].write(np.ascontiguousarray(image.transpose(1, 2, 0)).data)
        self.counts[shape] += 1
        return self.counts[shape] - 1

    def of(self, shape: tuple[int, ...]) -> np.ndarray:
        """All of a shape, (N, H, W, C)."""
        channels, height, width = shape
        file, whole = self.files[shape], (self.counts[shape], height, width, channels)
        file.seek(0)
        if shape in self.in_file:
            return np.memmap(file, np.uint8, "r", shape=whole)
        return np.frombuffer(file.read(), np.uint8).reshape(whole)


def gathered(source: np.ndarray, rows: np.ndarray, file: Path) -> np.ndarray:
    """Rows of an array in another order, in a file of their own, which the array given back is a view of."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), *source.shape[1:])}
    with open(file, "wb") as out:  # written, not mapped: a full disk is then an error, and no crash
        np.lib.format.write_array_header_1_0(out, header)
        for start in range(0, len(rows), CHUNK):
            out.write(np.ascontiguousarray(source[rows[start : start + CHUNK]]).data)
    return np.load(file, mmap_mode="c")


def _labels(path: Path) -> dict[str, str]:
    """File → label, from a CSV whose first line names these two columns."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"file", "label"} <= set(reader.fieldnames or ()):
                raise ValueError(f"its first line must name the columns file and label, and is {reader.fieldnames}")
            rows = [(row["file"], row["label"]) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"labels={os.fspath(path)!r} cannot be used: {error}") from error
    for file, label in rows:
        if not file or not label:
            raise ValueError(f"labels={os.fspath(path)!r} has a line without file or label: {file!r}, {label!r}")
    if twice := [file for file, count in Counter(file for file, _ in rows).items() if count > 1]:
        raise ValueError(f"labels={os.fspath(path)!r} names {twice[0]!r} more than once")
    return {str(PurePosixPath(file.replace("\\", "/"))): label for file, label in rows}


def hashed(images: np.ndarray, begun: str = "") -> "hashlib._Hash":
    """A SHA-256 of some text and the bytes of pictures, in chunks: they may be more than fits into memory."""
    found = hashlib.sha256(begun.encode())
    for start in range(0, len(images), CHUNK):
        found.update(np.ascontiguousarray(images[start : start + CHUNK]))
    return found


def _read_cache(folder: Path) -> Pictures | None:
    try:
        with open(folder / "about.npz", "rb") as file, np.load(file, allow_pickle=False) as arrays:  # with checksums
            names, note, expected = json.loads(str(arrays["text"]))
            labels, part = arrays["labels"], arrays["part"]
        images = np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False)
        if hashed(images).hexdigest() != expected:
            raise ValueError("its pictures are not those that were written")
        return Pictures(images.transpose(0, 3, 1, 2), labels, part, tuple(names), note)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(f"{folder} cannot be read, decoding again: {error}", stacklevel=4)
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
        return None


def _kept(
    folder: Path,
    frames: _Frames,
    shape: tuple[int, ...],
    rows: np.ndarray,
    labels: np.ndarray,
    part: np.ndarray,
    names: tuple[str, ...],
    note: str,
) -> Pictures:
    """Pictures in their order, in the cache whole or, where that cannot be written, in memory."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        images = gathered(frames.of(shape), rows, partial / "images.npy")
        text = json.dumps([names, note, hashed(images).hexdigest()])
        np.savez(partial / "about.npz", labels=labels, part=part, text=text)
        try:
            os.rename(partial, folder)
        except OSError:
            if not folder.is_dir():  # another process may have been quicker
                raise
    except OSError as error:
        warnings.warn(f"decoded pictures not kept, {folder.parent} cannot be written: {error}", stacklevel=4)
        images = frames.of(shape)[rows]
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Pictures(images.transpose(0, 3, 1, 2), labels, part, names, note)


def _decode_all(
    path: Path, files: Iterable[tuple[str, bytes | None]], image_size: int | None, colour: str, frames: _Frames
) -> tuple[dict[tuple, _Decoded], set[tuple]]:
    """What was decoded, by place, and all folders.

    One thread: for pictures of this size two are slower, as the interpreter lock changes hands too often.
    """
    from PIL import Image

    Image.init()  # PIL knows the less common formats only after this
    found, folders, total = {}, set(), 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for name, content in files:
            place = PurePosixPath(name).parts
            folder = place if content is None else place[:-1]
            if not any(map(is_hidden, folder)):
                folders.add(folder)
            if content is None or any(map(is_hidden, place)):
                continue
            image, found[place] = _decode(content, image_size, colour)
            if image is None:
                continue
            found[place] = replace(found[place], shape=image.shape, row=frames.add(image))
            total += image.nbytes
            if total > MAX_TOTAL_BYTES:
                raise ValueError(f"pictures in {path} take over {MAX_TOTAL_BYTES} bytes; give an image_size")
    return found, folders


def _decode(content: bytes, image_size: int | None, colour: str) -> tuple[np.ndarray | None, _Decoded]:
    """A picture file, (C, H, W); what is wrong with it is told where it lies among the pictures, and only there."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with io.BytesIO(content) as file, Image.open(file, formats=DECODERS) as image:
            kind = f"{image.format}{_jpeg_quality(getattr(image, 'quantization', None))}"
            changes = ["first frames of several"] if getattr(image, "n_frames", 1) > 1 else []
            if image_size:
                image.draft(None, (2 * image_size, 2 * image_size))  # JPEG: decode no larger than needed
            upright = ImageOps.exif_transpose(image)
            plain = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}.get(image.mode)
            if "transparency" in image.info or not plain:
                if colour == "auto":
                    what = "has transparency" if plain else f"is of mode {image.mode}, not grey (L) or RGB"
                    return None, _Decoded(None, problem=f"it {what}", needs_colour=True)
                upright, done = _plain(upright)
                changes.append(done)
            wanted = {"auto": plain, "rgb": "RGB", "grey": "L"}[colour]
            if colour != "auto" and (plain or upright.mode) != wanted:
                changes.append(f"made {colour}")
            pixels = to_array(upright.convert(wanted), image_size)
            return pixels, _Decoded(pixels.shape, kind=kind, changes=tuple(changes))
    except UnidentifiedImageError:
        start = content.lstrip()[:1]
        what = "is empty" if not content else "is text, HTML or the like" if start in (b"<", b"{") else "is none"
        return None, _Decoded(None, problem=f"it {what}: pictures of {', '.join(DECODERS)} are read")
    except Exception as error:  # PIL has a dozen kinds
        return None, _Decoded(None, problem=str(error) or type(error).__name__)


def _plain(image) -> tuple:
    """A PIL picture of an unusual mode as L or RGB, and what was done.

    Raises: ValueError for a mode whose black and white nobody knows.
    """
    from PIL import Image, ImageCms

    if image.mode.startswith("I"):  # 16 bits, which PIL's own conversion would cut off at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"mode {image.mode} holds {values.min()} … {values.max()}; 0 … 65535 can be scaled")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)), "scaled from 16 bits"
    if image.mode == "F":
        raise ValueError("mode F holds floats, whose black and white nobody knows: scale them to 8 bits first")
    if image.mode == "CMYK":
        if profile := image.info.get("icc_profile"):
            with contextlib.suppress(ImageCms.PyCMSError, OSError):
                own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
                srgb = ImageCms.createProfile("sRGB")
                return ImageCms.profileToProfile(image, own, srgb, outputMode="RGB"), "from CMYK by their profile"
        return image.convert("RGB"), "from CMYK without a profile"
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        behind = Image.new("RGBA", image.size, BACKGROUND)
        return Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB"), f"laid on {BACKGROUND}"
    return image.convert("RGB"), f"from {image.mode}"


def to_array(image, image_size: int | None) -> np.ndarray:
    """A PIL picture as (C, H, W); with image_size its central square, resized by an antialiased bilinear filter."""
    from PIL import Image, ImageOps

    if image_size:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


def _jpeg_quality(tables: dict | None) -> str:
    """The quality a JPEG was written with, told from its luminance table, which libjpeg scales from a standard one.

    Source: ITU-T T.81, table K.1 (its 64 entries sum to 3688), and libjpeg's jpeg_quality_scaling.
    """
    if not tables:
        return ""  # no JPEG
    percent = 100 * sum(tables[0]) / 3688
    return f" quality {round(100 - percent / 2 if percent <= 100 else 5000 / percent)}"


def _arrange(path: Path, found: dict[tuple, _Decoded], folders: set[tuple]) -> tuple:
    """Read classes and splits from where the pictures lie."""
    reach = max([0, *map(len, found), *(len(place) + 1 for place in folders)])
    skip, tops = 0, {place[0] for place in folders if place}
    while len(tops) == 1 and reach > skip + 2:  # an archive often wraps everything in one folder
        skip += 1
        tops = {place[skip] for place in folders if len(place) > skip}
    split = _splits(path, tops, reach > skip + 2)
    depth = skip + (3 if split else 2)  # of a picture
    if not tops:
        raise ValueError(f"{path} has no class folders; {LAYOUT}")
    for place in sorted(folders):
        if len(place) >= depth or (split and not {*place[skip : skip + 1]} <= split.keys()):
            raise ValueError(f"folder {'/'.join(place)} in {path} is out of place; {LAYOUT}")
    if bare := [top for top in sorted(split) if not any(len(p) == depth - 1 and p[skip] == top for p in folders)]:
        raise ValueError(f"{bare[0]}/ in {path} has no class folders, so its pictures have no labels: leave it out")
    if loose := sorted("/".join(place) for place in found if len(place) < depth):
        text = f"files outside the class folders of {path} are ignored: {loose[0]} (of {len(loose)})"
        warnings.warn(text, stacklevel=5)
    places = sorted(place for place in found if len(place) == depth)
    _check_decoded(path, found, places)
    classes = {place for place in folders if len(place) == depth - 1}
    for empty in sorted(classes - {place[:-1] for place in places}):
        raise ValueError(f"class folder {'/'.join(empty)} in {path} has no pictures")
    names = sorted({place[-1] for place in classes})
    for top in sorted(split):
        own = {place[-1] for place in classes if place[skip] == top}
        for name in sorted(set(names) - own):
            raise ValueError(f"{top}/ in {path} has no class {name!r}; {', '.join(sorted(split))} need the same ones")
    part = np.array([split[place[skip]] for place in places if split], np.int8)
    return _told(path, found, places, [place[-2] for place in places], part)


def _splits(path: Path, tops: set[str], is_deep: bool) -> dict[str, int]:
    """Which of the uppermost folders are splits: folder → 0 train, 1 val, 2 test; {} where they are classes."""
    split = {top: SPLITS[top.lower()] for top in tops if top.lower() in SPLITS}
    if 0 not in split.values() or len(split) < 2:
        return {}
    names = ", ".join(f"{top}/" for top in sorted(split))
    if len(set(split.values())) < len(split):
        raise ValueError(f"{path} has {names}, two of which mean the same split; {LAYOUT}")
    if not is_deep:
        raise ValueError(
            f"{names} in {path} hold pictures without class folders, so their classes are not known; {LAYOUT}"
        )
    return split


def _by_list(path: Path, found: dict[tuple, _Decoded], given: dict[str, str], labels: Path | None) -> tuple:
    """The pictures that a list of labels names, by their place or, where all lies in one folder, below that."""
    skip = 0
    tops = {place[0] for place in found if len(place) > 1}
    if len(tops) == 1 and not any(PurePosixPath(file).parts[0] in tops for file in given):
        skip = 1
    here = {"/".join(place[skip:]): place for place in found}
    if missing := [file for file in given if file not in here]:
        raise ValueError(f"{labels} names {missing[0]!r} (of {len(missing)}), which is not in {path}")
    files = sorted(given)
    if extra := len(here) - len(files):
        warnings.warn(f"{extra} files in {path} are ignored: {labels} does not name them", stacklevel=5)
    places = [here[file] for file in files]
    _check_decoded(path, found, places)
    return _told(path, found, places, [given[file] for file in files], np.zeros(0, np.int8))


def _check_decoded(path: Path, found: dict[tuple, _Decoded], places: list[tuple]) -> None:
    """Refuse pictures that cannot be used, or do not go together."""
    bad = [place for place in places if found[place].shape is None]
    if bad:
        first = found[bad[0]]
        kin = sum(found[place].needs_colour for place in bad) if first.needs_colour else 0
        advice = f"; colour='rgb' or colour='grey' converts it, and {kin - 1} more like it" if kin else ""
        raise ValueError(f"cannot use {'/'.join(bad[0])} in {path}: {first.problem}{advice}")
    shapes: dict[tuple, list[tuple]] = {}
    for place in places:
        shapes.setdefault(found[place].shape, []).append(place)
    if len(shapes) < 2:
        return
    (a, first), (b, second) = sorted(shapes.items())[:: len(shapes) - 1]  # by channels, then size
    one, other = "/".join(first[0]), "/".join(second[0])
    if a[0] != b[0]:
        counts = Counter()
        for shape, members_ in shapes.items():
            counts[shape[0]] += len(members_)
        raise ValueError(
            f"grey and colour are mixed: {one} is grey ({counts[1]} are), {other} is colour ({counts[3]} are); "
            "colour='rgb' or colour='grey' makes them alike"
        )
    sizes = f"{one} is {a[2]}x{a[1]}, {other} is {b[2]}x{b[1]}"
    raise ValueError(f"sizes differ: {sizes}; give image_size to make them equal")


def _told(path: Path, found: dict[tuple, _Decoded], places: list[tuple], classes: list[str], part: np.ndarray) -> tuple:
    """Shape and rows of the pictures among the frames, labels, split, class names and note."""
    names = sorted(set(classes))
    if len(names) < 2:
        raise ValueError(f"{path} has only the class {names[0]!r}; two or more are needed")
    index = {name: label for label, name in enumerate(names)}
    labels = np.array([index[name] for name in classes], np.int64)
    kinds = sorted({found[place].kind for place in places})
    changes = Counter(change for place in places for change in found[place].changes)
    told = f" ({', '.join(f'{count} {what}' for what, count in sorted(changes.items()))})" if changes else ""
    note = f"{len(places)} {' and '.join(kinds)} pictures{told}"
    rows = np.array([found[place].row for place in places])
    return found[places[0]].shape, rows, labels, part, tuple(names), note
