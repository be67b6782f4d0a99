"""Read the pictures of a folder or an archive: decoded once, arranged by class and split, and kept."""

import contextlib
import csv
import hashlib
import json
import os
import shutil
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from resnet_lib.archives import is_hidden, listing, members
from resnet_lib.decoding import Decoded, Part, parts_of

MAX_TOTAL_BYTES = 2**36  # of all decoded pictures together; they lie in a file
CHUNK = 2**26  # bytes of pictures that are copied at a time
PART_FILES, PART_BYTES = 512, 2**21  # files, or bytes of them, that are decoded at a time and kept if more follow
CACHE_FORMAT = 5  # part of the cache key: raise it when decoding changes
COLOURS = ("auto", "rgb", "grey")
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
    identity: "hashlib._Hash | None" = None  # `identity_of` it, where it has been found


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

    Decoding takes all cores. Where it is interrupted, the next call goes on from the parts that were finished.

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
        kept = cached.with_suffix(".partial")
        try:
            with tqdm(total=size, desc=f"decoding {path.name}", **style) as bar:
                found, folders, parts = _decode_all(path, members(path, entries, bar), image_size, colour, kept)
            arranged = _by_list(path, found, given, labels) if given else _arrange(path, found, folders)
            pictures = _kept(cached, parts, arranged)
        except ValueError:  # another call would come to the same; after an interruption it goes on
            shutil.rmtree(kept, ignore_errors=True)
            raise
        shutil.rmtree(kept, ignore_errors=True)
    return pictures._replace(note=f"{pictures.note} from {path.name}")


def gathered(source: np.ndarray, rows: np.ndarray, file: Path) -> np.ndarray:
    """Rows of an array in another order, in a file of their own, which the array given back is a view of."""
    chunks = range(0, len(rows), step := max(1, CHUNK // prod(source.shape[1:])))
    blocks = (np.ascontiguousarray(source[rows[start : start + step]]) for start in chunks)
    return _written(file, (len(rows), *source.shape[1:]), zip(chunks, blocks, strict=True))


def _written(file: Path, shape: tuple[int, ...], blocks: Iterable[tuple[int, np.ndarray]]) -> np.ndarray:
    """An array made of blocks, each with the row that it begins at, in a file."""
    with open(file, "wb") as out:  # written, not mapped: a full disk is then an error, and no crash
        np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
        begin = out.tell()
        for row, block in blocks:
            out.seek(begin + row * prod(shape[1:]))
            out.write(block.data)
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


def identity_of(images: np.ndarray, class_names: Sequence[str]) -> "hashlib._Hash":
    """A SHA-256 of pictures, (N, C, H, W), and class names; in chunks, as they may be more than fits into memory."""
    found = hashlib.sha256(json.dumps([images.shape, class_names]).encode())
    for start in range(0, len(images), step := max(1, CHUNK // prod(images.shape[1:]))):
        found.update(np.ascontiguousarray(images[start : start + step]))
    return found


def _read_cache(folder: Path) -> Pictures | None:
    try:
        with open(folder / "about.npz", "rb") as file, np.load(file, allow_pickle=False) as arrays:  # with checksums
            names, note, expected = json.loads(str(arrays["text"]))
            labels, part = arrays["labels"], arrays["part"]
        images = np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False).transpose(0, 3, 1, 2)
        identity = identity_of(images, names)
        if identity.hexdigest() != expected:
            raise ValueError("its pictures are not those that were written")
        return Pictures(images, labels, part, tuple(names), note, identity)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(f"{folder} cannot be read, decoding again: {error}", stacklevel=4)
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
        return None


def _kept(folder: Path, parts: list[Part], arranged: tuple) -> Pictures:
    """Pictures in their order, in the cache whole or, where that cannot be written, in memory."""
    shape, rows, labels, part, names, note = arranged
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    whole = (len(rows), *shape[1:], shape[0])
    try:
        partial.mkdir(parents=True)
        images = _written(partial / "images.npy", whole, _placed(parts, rows))
        identity = identity_of(images.transpose(0, 3, 1, 2), names)
        text = json.dumps([names, note, identity.hexdigest()])
        np.savez(partial / "about.npz", labels=labels, part=part, text=text)
        try:
            os.rename(partial, folder)
        except OSError:
            if not folder.is_dir():  # another process may have been quicker
                raise
    except OSError as error:
        if made := _read_cache(folder):  # another process was quicker, and has cleared the parts away
            return made
        warnings.warn(f"decoded pictures not kept, {folder.parent} cannot be written: {error}", stacklevel=4)
        images = np.concatenate([p for _, p in sorted(_placed(parts, rows), key=lambda one: one[0])]).reshape(whole)
        identity = None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Pictures(images.transpose(0, 3, 1, 2), labels, part, names, note, identity)


def _placed(parts: list[Part], rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The pictures of some rows, as they come; each with its place among these rows."""
    place, row = {int(row): place for place, row in enumerate(rows)}, 0
    for _, decoded, pixels in parts:
        if isinstance(pixels, Path):
            with open(pixels, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                pixels = arrays["pixels"]
        ends = np.cumsum([prod(one.shape) for one in decoded if one.shape])
        for picture in np.split(pixels, ends)[:-1]:
            if row in place:
                yield place[row], picture[None]
            row += 1


def _decode_all(path: Path, files: Iterable[tuple], image_size: int | None, colour: str, kept: Path) -> tuple:
    """What was decoded, by place; all folders; and the parts in their order."""
    found, folders, parts, total, row = {}, set(), [], 0, 0
    for part in parts_of(_chunks(files, folders), image_size, colour, kept):
        for name, one in zip(part.names, part.decoded, strict=True):
            found[PurePosixPath(name).parts] = one._replace(row=row)
            row += one.shape is not None
            total += prod(one.shape or [0])
        if total > MAX_TOTAL_BYTES:
            raise ValueError(f"pictures in {path} take over {MAX_TOTAL_BYTES} bytes; give an image_size")
        parts.append(part)
    return found, folders, parts


def _chunks(files: Iterable[tuple], folders: set[tuple]) -> Iterator[tuple[list[tuple[str, bytes]], bool]]:
    """Some of the files at a time, and whether more may follow; the folders are added to `folders`."""
    some, size = [], 0
    for name, content in files:
        place = PurePosixPath(name).parts
        folder = place if content is None else place[:-1]
        if not any(map(is_hidden, folder)):
            folders.add(folder)
        if content is not None and not any(map(is_hidden, place)):
            some.append((name, content))
            size += len(content)
        if len(some) >= PART_FILES or size >= PART_BYTES:
            yield some, True
            some, size = [], 0
    if some:
        yield some, False


def _arrange(path: Path, found: dict[tuple, Decoded], folders: set[tuple]) -> tuple:
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


def _by_list(path: Path, found: dict[tuple, Decoded], given: dict[str, str], labels: Path | None) -> tuple:
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


def _check_decoded(path: Path, found: dict[tuple, Decoded], places: list[tuple]) -> None:
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


def _told(path: Path, found: dict[tuple, Decoded], places: list[tuple], classes: list[str], part: np.ndarray) -> tuple:
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
