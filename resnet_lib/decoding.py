"""Decode picture files on all cores, a part of them at a time, which outlasts an interruption."""

import contextlib
import io
import json
import os
import warnings
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

DECODERS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # others start programs, or read no pictures
BACKGROUND = "white"  # behind what is transparent
ALONE = 4  # parts after which other processes help: they take a second to start


class Decoded(NamedTuple):  # what became of a file
    shape: Sequence[int] | None  # (C, H, W); None where it cannot be used
    row: int = 0  # its number among all that were decoded
    kind: str = ""  # format and quality
    changes: Sequence[str] = ()  # what was done to it
    problem: str = ""
    needs_colour: bool = False  # colour="rgb" or "grey" would take it


class Part(NamedTuple):  # some files, decoded
    names: list[str]
    decoded: list[Decoded]
    pixels: np.ndarray | Path  # uint8, of all that can be used (H, W, C), end to end; or the file where they lie


def parts_of(chunks: Iterable[tuple], image_size: int | None, colour: str, kept: Path) -> Iterator[Part]:
    """Each chunk of files, decoded, in turn; on all cores unless there are few.

    Threads are no faster for small pictures: each waits for the others to let go of the interpreter.

    Args: chunks: (files, as `decode_part` takes them, and whether more may follow). kept: the folder for such parts.
    """
    from joblib import cpu_count
    from joblib.externals.loky import ProcessPoolExecutor  # forks no threads, and runs nobody's main module again

    pool, waiting = None, deque()
    try:
        for number, (files, more) in enumerate(chunks):
            task = (files, kept / f"{number:06}.npz" if more else None, image_size, colour)
            if number < ALONE:
                yield decode_part(*task)
                continue
            pool = pool or ProcessPoolExecutor(cpu_count(), timeout=10)  # idle for as long, its processes end
            waiting.append(pool.submit(decode_part, *task))
            if len(waiting) > cpu_count() + 2:  # each holds its files' bytes
                yield waiting.popleft().result()
        yield from (part.result() for part in waiting)
    finally:
        if pool:
            pool.shutdown(kill_workers=True)


def decode_part(files: list[tuple[str, bytes]], kept: Path | None, image_size: int | None, colour: str) -> Part:
    """Decode some files, or take what an interrupted call decoded; pixels go to a file if one is given."""
    from PIL import Image

    if kept and (part := _read_part(kept, [name for name, _ in files])):
        return part
    Image.init()  # PIL knows the less common formats only after this
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        made = [_decode(content, image_size, colour) for _, content in files]
    pixels = [image.transpose(1, 2, 0).ravel() for image, _ in made if image is not None]
    pixels = np.concatenate([*pixels, np.zeros(0, np.uint8)])  # where none can be used, too
    part = Part([name for name, _ in files], [one for _, one in made], pixels)
    if kept is None:
        return part
    partial = kept.with_suffix(f".{os.getpid()}.npz")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(partial, text=json.dumps([part.names, part.decoded]), pixels=pixels)
        os.replace(partial, kept)  # another process that decodes the same puts the same there
        return part._replace(pixels=kept)
    except OSError:  # it stays in memory; that no cache can be written is told at the end
        with contextlib.suppress(OSError):
            partial.unlink()
        return part


def _read_part(kept: Path, names: list[str]) -> Part | None:
    """What was decoded into a file, of which every byte is checked; None where it is not of these names, or damaged."""
    try:
        with open(kept, "rb") as file, np.load(file, allow_pickle=False) as arrays:  # with checksums
            found, rows = json.loads(str(arrays["text"]))
            decoded = [Decoded(shape and tuple(shape), *rest) for shape, *rest in rows]
            whole = len(arrays["pixels"]) == sum(prod(one.shape) for one in decoded if one.shape)
            return Part(names, decoded, kept) if whole and found == names else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _decode(content: bytes, image_size: int | None, colour: str) -> tuple[np.ndarray | None, Decoded]:
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
                    return None, Decoded(None, problem=f"it {what}", needs_colour=True)
                upright, done = _plain(upright)
                changes.append(done)
            wanted = {"auto": plain, "rgb": "RGB", "grey": "L"}[colour]
            if colour != "auto" and (plain or upright.mode) != wanted:
                changes.append(f"made {colour}")
            pixels = to_array(upright.convert(wanted), image_size)
            return pixels, Decoded(pixels.shape, kind=kind, changes=changes)
    except UnidentifiedImageError:
        start = content.lstrip()[:1]
        what = "is empty" if not content else "is text, HTML or the like" if start in (b"<", b"{") else "is none"
        return None, Decoded(None, problem=f"it {what}: pictures of {', '.join(DECODERS)} are read")
    except Exception as error:  # PIL has a dozen kinds
        return None, Decoded(None, problem=str(error) or type(error).__name__)


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
