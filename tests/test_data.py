"""Every source gives the same kind of data set; every bad input is named."""

import gzip
import hashlib
import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from resnet_lib import archives, data, pictures
from resnet_lib import decoding as decoders

DIGITS = load_digits()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET_LIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(index, mode="L", kind="PNG", size=None):
    image = Image.fromarray((DIGITS.images[index] * 15).astype(np.uint8)).convert(mode)
    image = image.resize(size) if size else image
    image.save(buffer := io.BytesIO(), kind)
    return buffer.getvalue()


def tree(per_class=10, wrap="", **kw):
    """{path: bytes} of a small data set with three classes."""
    where = {digit: np.flatnonzero(digit == DIGITS.target) for digit in range(3)}
    return {
        f"{wrap}{name}/{i:02}.png": picture(where[digit][i], **kw)
        for digit, name in enumerate(["zero", "one", "two"])
        for i in range(per_class)
    }


def write_folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).mkdir() if name.endswith("/") else (path / name).write_bytes(content)
    return path


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            elif name.endswith("/"):
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if info.size else None)
    return path


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def load(path, **kw):
    return data.load(path, **{"progress": False, "val_fraction": 0.25, **kw})


def same(a, b):
    parts = [(getattr(a, part), getattr(b, part)) for part in ("train", "val", "test")]
    return a.fingerprint == b.fingerprint and all(
        torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) for x, y in parts
    )


def rows(split):
    """The set of (label, *pixels)."""
    return {(y, *x) for x, y in zip(split.images.flatten(1).tolist(), split.labels.tolist(), strict=True)}


# ---------------------------------------- digits and splits


def test_digits_are_uint8_nchw_with_names_and_fingerprint():
    digits = data.load("digits")
    assert digits.train.images.dtype == torch.uint8 and digits.train.images.shape[1:] == (1, 8, 8)
    assert digits.train.labels.dtype == torch.int64 and digits.class_names == tuple("0123456789")
    assert digits.train.images.min() == 0 and digits.train.images.max() == 255
    assert digits.name == "digits" and "scikit-learn" in digits.note
    assert digits.fingerprint == "894f6ed759c45670"  # fixed across runs and machines: it names records


def test_splits_are_disjoint_stratified_and_together_everything():
    digits = data.load("digits", seed=3)
    parts = [digits.train, digits.val, digits.test]
    assert sum(map(len, parts)) == len(DIGITS.target)
    images = torch.cat([part.images for part in parts])
    expected = torch.from_numpy(np.rint(DIGITS.images * 255 / 16).astype(np.uint8))
    assert sorted(images.flatten(1).tolist()) == sorted(expected.flatten(1).tolist())
    assert not (rows(digits.train) & rows(digits.test) or rows(digits.train) & rows(digits.val))
    whole = np.bincount(DIGITS.target)
    for part in parts:
        assert np.abs(torch.bincount(part.labels).numpy() - whole * len(part) / len(DIGITS.target)).max() <= 1
    assert len(digits.test) == round(0.2 * len(DIGITS.target))


def test_labels_stay_with_their_pictures():
    expected = np.rint(DIGITS.data * 255 / 16).astype(int).tolist()
    known = {(y, *x) for x, y in zip(expected, DIGITS.target, strict=True)}
    digits = data.load("digits")
    assert all(rows(part) <= known for part in (digits.train, digits.val, digits.test))


def test_every_stretch_of_a_split_has_the_classes_in_proportion():
    counts = torch.bincount(data.load("digits").train.labels[:100], minlength=10)
    assert counts.min() >= 9 and counts.max() <= 11


def test_same_seed_same_split_other_seed_other_split_and_the_global_generators_are_untouched():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert same(data.load("digits", seed=1), data.load("digits", seed=1))
    other = data.load("digits", seed=2)
    assert not same(data.load("digits", seed=1), other)
    assert other.fingerprint != data.load("digits", seed=1).fingerprint
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()


def test_smaller_training_sets_are_contained_in_larger_ones_and_leave_val_and_test_alone():
    small, large, whole = (data.load("digits", train_size=n) for n in (50, 200, 0))
    assert len(small.train) == 50 and len(large.train) == 200
    assert rows(small.train) <= rows(large.train) <= rows(whole.train)
    assert torch.equal(small.val.images, whole.val.images)
    assert torch.equal(small.test.images, whole.test.images)
    assert (torch.bincount(small.train.labels) - 5).abs().max() <= 1


def test_mean_and_std_are_those_of_the_pixels_of_train():
    digits = data.load("digits", train_size=300)
    pixels = digits.train.images.double() / 255
    torch.testing.assert_close(digits.mean, pixels.mean((0, 2, 3)).float())
    torch.testing.assert_close(digits.std, pixels.std((0, 2, 3), correction=0).float())


def test_image_size_resizes_known_sets_without_touching_the_split():
    plain, big = data.load("digits"), data.load("digits", image_size=16)
    assert big.train.images.shape[1:] == (1, 16, 16) and torch.equal(plain.train.labels, big.train.labels)
    assert plain.fingerprint != big.fingerprint


# ---------------------------------------- folders and archives


def test_folder_tar_and_zip_of_the_same_pictures_are_the_same_data(tmp_path):
    files = tree()
    folder = load(write_folder(tmp_path / "pets", files))
    assert folder.class_names == ("one", "two", "zero") and folder.name == "pets"
    assert folder.note == "30 PNG pictures from pets"
    for mode in ("w", "w:gz", "w:xz"):
        archive = write_tar(tmp_path / f"pets.tar.{mode[2:]}".rstrip("."), files, mode)
        assert same(load(archive), folder) and load(archive).name == "pets"
    assert same(load(write_zip(tmp_path / "pets.zip", files)), folder)
    wrapped = {f"./pets/{name}": content for name, content in files.items()}
    assert same(load(write_tar(tmp_path / "wrapped.tar", {"./": b"", **wrapped})), folder)


def test_train_and_test_folders_are_kept_for_every_seed(tmp_path):
    files = {**tree(8, "train/"), **tree(4, "test/", mode="L")}
    sets = [load(write_tar(tmp_path / "a.tar", files), seed=seed) for seed in (0, 1)]
    assert [len(part) for part in (sets[0].train, sets[0].val, sets[0].test)] == [18, 6, 12]
    assert torch.equal(sets[0].test.images, sets[1].test.images)
    assert not torch.equal(sets[0].train.images, sets[1].train.images)


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Train", "valid", "Test"), ("training", "validation", "testing")]
)
def test_given_splits_are_used_as_they_are_for_every_seed(tmp_path, names):
    files = {**tree(8, f"{names[0]}/"), **tree(3, f"{names[1]}/"), **tree(4, f"{names[2]}/")}
    one, two = (load(write_tar(tmp_path / "a.tar", files), seed=seed) for seed in (0, 1))
    assert [len(part) for part in (one.train, one.val, one.test)] == [24, 9, 12]
    assert torch.equal(one.test.images, two.test.images) and torch.equal(one.val.images, two.val.images)
    assert rows(one.train) == rows(two.train) and not torch.equal(one.train.images, two.train.images)
    for count, split in ((8, one.train), (3, one.val), (4, one.test)):
        path = write_tar(tmp_path / f"{count}.tar", tree(count))
        alone = pictures.read(path, tmp_path, progress=False)
        assert rows(split) == {(y, *x.flatten().tolist()) for x, y in zip(alone.images, alone.labels, strict=True)}


def test_without_a_test_split_a_part_of_train_is_kept_and_the_note_says_so(tmp_path):
    found = load(write_tar(tmp_path / "a.tar", {**tree(10, "train/"), **tree(3, "val/")}))
    assert [len(part) for part in (found.train, found.val, found.test)] == [24, 9, 6]
    assert "no test set: 20% of train/ are kept to test" in found.note
    assert rows(found.val) == rows(load(write_tar(tmp_path / "b.tar", {**tree(9, "train/"), **tree(3, "val/")})).val)


def test_the_line_about_the_data_names_the_classes(tmp_path):
    found = load(write_tar(tmp_path / "a.tar", tree()))
    assert found.about()["text"].endswith("6 to test once; 3 classes: one, two, zero.")


def test_a_csv_of_file_and_label_serves_pictures_in_any_folder(tmp_path):
    files = tree()
    flat = {name.replace("/", "-"): content for name, content in files.items()}
    expected = load(write_tar(tmp_path / "a.tar", files))
    lines = [f"{name},{name.split('-')[0]}" for name in flat]
    (tmp_path / "labels.csv").write_text("\n".join(["\ufefffile,label", *lines]))
    for path in (
        write_folder(tmp_path / "flat", flat),
        write_zip(tmp_path / "flat.zip", {f"all/{n}": c for n, c in flat.items()}),
    ):
        found = load(path, labels=tmp_path / "labels.csv")
        assert rows(found.train) | rows(found.val) | rows(found.test) == rows(expected.train) | rows(
            expected.val
        ) | rows(expected.test)
    with pytest.warns(UserWarning, match="1 files in .* are ignored: .*labels.csv does not name them"):
        (tmp_path / "labels.csv").write_text("\n".join(["file,label", *lines[1:]]))
        assert len(load(tmp_path / "flat", labels=tmp_path / "labels.csv").test) == 6
    for text, message in (
        ("name,class\na,b", r"first line must name the columns file and label, and is \['name', 'class'\]"),
        ("file,label\nnone.png,a", "names 'none.png' .of 1., which is not in"),
        (f"file,label\n{lines[0]}\n{lines[0]}", "names 'zero-00.png' more than once"),
        ("file,label\nzero-00.png,", "has a line without file or label"),
    ):
        (tmp_path / "labels.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "flat", labels=tmp_path / "labels.csv")
    with pytest.raises(ValueError, match="labels=.*nowhere.csv' cannot be used: .*No such file"):
        load(tmp_path / "flat", labels=tmp_path / "nowhere.csv")


def saved(image, kind="PNG", **options):
    image.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def one_pixel_of(tmp_path, image, colour, kind="PNG", **options):
    """The first pixel of a picture among others, and what the note says."""
    files = tree(mode="RGB") | {"one/00.png": saved(image.resize((8, 8)), kind, **options)}
    path = write_zip(tmp_path / "a.zip", files)
    pixels = pictures.read(path, tmp_path, colour=colour, progress=False)
    return pixels.images[0, :, 0, 0].tolist(), pixels.note


CLEAR = [255, 255, 255]  # of a transparent pixel, whatever its colour
PALETTE = Image.fromarray(np.full((8, 8), 3, np.uint8), "L").convert("P")


@pytest.mark.parametrize(
    ("image", "options", "expected", "told"),
    [
        (Image.new("RGBA", (8, 8), (10, 20, 30, 0)), {}, CLEAR, "1 laid on white"),
        (Image.new("RGBA", (8, 8), (10, 20, 30, 255)), {}, [10, 20, 30], "1 laid on white"),
        (Image.new("LA", (8, 8), (10, 0)), {}, CLEAR, "1 laid on white"),
        (PALETTE, {"transparency": 3}, CLEAR, "1 laid on white"),
        (Image.new("RGB", (8, 8), (1, 2, 3)), {"transparency": (1, 2, 3)}, CLEAR, "1 laid on white"),
        (Image.new("RGB", (8, 8), (1, 2, 4)), {"transparency": (1, 2, 3)}, [1, 2, 4], "1 laid on white"),
        (Image.fromarray(np.full((8, 8), 32896, np.uint16)), {}, [128, 128, 128], "1 scaled from 16 bits"),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), {"kind": "TIFF"}, [255, 0, 0], "1 from CMYK without a profile"),
        (Image.new("L", (8, 8), 7), {}, [7, 7, 7], "1 made rgb"),
    ],
)
def test_colour_rgb_converts_rightly_and_says_what_it_did(tmp_path, image, options, expected, told):
    found, note = one_pixel_of(tmp_path, image, "rgb", **options)
    assert found == expected and told in note


def test_a_16_bit_ramp_keeps_all_its_greys(tmp_path):
    ramp = Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8))
    path = write_zip(tmp_path / "a.zip", tree() | {"one/00.png": saved(ramp)})
    with pytest.raises(
        ValueError, match="one/00.png .* is of mode I;16.*colour='grey' converts it, and 0 more like it"
    ):
        load(path)
    found = pictures.read(path, tmp_path, colour="grey", progress=False)
    assert len(np.unique(found.images[0])) == 64


def test_cmyk_goes_through_its_profile(tmp_path, monkeypatch):
    from PIL import ImageCms

    asked = []

    def by_profile(image, own, srgb, outputMode):
        asked.append(outputMode)
        return Image.new("RGB", image.size, (9, 8, 7))

    monkeypatch.setattr(ImageCms, "profileToProfile", by_profile)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found, note = one_pixel_of(tmp_path, Image.new("CMYK", (8, 8)), "rgb", "JPEG", icc_profile=profile)
    assert found == [9, 8, 7] and "from CMYK by their profile" in note and asked == ["RGB"]


def test_the_first_frame_of_an_animation_is_taken_and_the_note_says_so(tmp_path):
    frames = [Image.new("L", (8, 8), value) for value in (0, 255)]
    content = saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    found = load(write_zip(tmp_path / "a.zip", tree() | {"one/00.png": content}))
    assert "(1 first frames of several)" in found.note


def test_a_loose_picture_sets_no_size_and_junk_of_any_spelling_is_ignored(tmp_path):
    clutter = {"cover.png": picture(0, size=(90, 30)), "one/thumbs.db": b"x", "@eaDir/one/1.png": b"x"}
    clean = load(write_zip(tmp_path / "a.zip", tree()))
    with pytest.warns(UserWarning, match="ignored: cover.png"):
        assert same(load(write_zip(tmp_path / "b.zip", tree() | clutter)), clean)


def test_zips_of_windows_and_odd_names_are_read_and_encrypted_ones_are_named(tmp_path):
    files = tree()
    clean = load(write_zip(tmp_path / "a.zip", files))
    names = [zipfile.ZipInfo() for _ in files]
    for info, name in zip(names, files, strict=True):
        info.filename = name.replace("/", "\\")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for info, content in zip(names, files.values(), strict=True):
            archive.writestr(info, content)
    assert same(load(tmp_path / "b.zip"), clean)
    odd = {name.replace("one/", "a:b/"): content for name, content in files.items()}
    assert "a:b" in load(write_tar(tmp_path / "c.tar", odd)).class_names
    locked = bytearray((tmp_path / "a.zip").read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = locked.find(mark)
        while start >= 0:
            locked[start + place] |= 1
            start = locked.find(mark, start + 4)
    (tmp_path / "d.zip").write_bytes(locked)
    with pytest.raises(ValueError, match="'zero/00.png' in .*d.zip is encrypted; make an archive without a password"):
        load(tmp_path / "d.zip")


def test_files_that_are_no_pictures_do_not_stay_in_memory(tmp_path):
    import tracemalloc

    clutter = {f"notes/{i}.bin": os.urandom(2**20) for i in range(64)}
    path = write_tar(tmp_path / "a.tar", {f"x/{name}": content for name, content in (tree() | clutter).items()})
    del clutter
    tracemalloc.start()
    with pytest.raises(ValueError, match="cannot use x/notes/0.bin"):
        load(path)
    assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    tracemalloc.stop()


def test_hidden_files_are_ignored_and_loose_files_are_reported(tmp_path):
    clutter = {"one/.DS_Store": b"x", "__MACOSX/one/._00.png": b"x", "one/Thumbs.db": b"x"}
    clean = load(write_zip(tmp_path / "a.zip", tree()))
    assert same(load(write_zip(tmp_path / "b.zip", {**tree(), **clutter})), clean)
    with pytest.warns(UserWarning, match="files outside the class folders .* are ignored: README.txt"):
        load(write_zip(tmp_path / "c.zip", {"README.txt": b"x", **tree()}))


def test_colour_jpegs_are_three_channels_and_palettes_are_colour(tmp_path):
    colour = load(write_zip(tmp_path / "a.zip", tree(mode="RGB", kind="JPEG")))
    assert colour.train.images.shape[1:] == (3, 8, 8) and "JPEG" in colour.note
    assert load(write_zip(tmp_path / "b.zip", tree(mode="P"))).train.images.shape[1] == 3


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    files = tree()
    upright = load(write_zip(tmp_path / "a.zip", files))
    for name, content in files.items():
        image = Image.open(io.BytesIO(content)).transpose(Image.Transpose.ROTATE_90)
        image.getexif()[0x0112] = 6  # shown turned a quarter clockwise
        image.save(buffer := io.BytesIO(), "PNG", exif=image.getexif())
        files[name] = buffer.getvalue()
    assert same(load(write_zip(tmp_path / "b.zip", files)), upright)


def test_image_size_makes_pictures_of_different_shape_equal(tmp_path):
    files = tree(mode="RGB", kind="JPEG")
    files["one/00.png"] = picture(5, "RGB", "JPEG", size=(300, 200))
    with pytest.raises(ValueError, match=r"sizes differ: .* is 8x8, one/00.png is 300x200; give image_size"):
        load(write_zip(tmp_path / "a.zip", files))
    assert load(tmp_path / "a.zip", image_size=12).train.images.shape[1:] == (3, 12, 12)


# ---------------------------------------- the cache


def test_the_second_load_reads_the_cache_and_is_equal(tmp_path, cache, monkeypatch):
    path = write_tar(tmp_path / "a.tar", tree())
    first = load(path)
    (kept,) = cache.iterdir()
    monkeypatch.setattr(pictures, "parts_of", None)  # any decoding would fail now
    second = load(path)
    assert same(first, second) and first.note == second.note and first.class_names == second.class_names
    assert sorted(path.name for path in kept.iterdir()) == ["about.npz", "images.npy"]


def test_the_cache_is_keyed_by_content_and_image_size_not_by_name(tmp_path, cache):
    path = write_tar(tmp_path / "a.tar", tree())
    first = load(path)
    load(path, image_size=4)
    shutil.copy(path, tmp_path / "b.tar")
    load(tmp_path / "b.tar")
    assert len(list(cache.iterdir())) == 2
    write_tar(path, tree(8))
    assert len(load(path).train) < len(first.train)
    folder = write_folder(tmp_path / "folder", tree())
    before = load(folder)
    (folder / "one/00.png").write_bytes(picture(7))
    assert load(folder).fingerprint != before.fingerprint


def test_many_pictures_lie_in_files_and_are_the_same_data(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", tree(mode="RGB"))
    first = load(path)
    monkeypatch.setattr(data, "LARGE", 100)
    monkeypatch.setattr(pictures, "PART_FILES", 7)
    monkeypatch.setattr(pictures, "CHUNK", 7 * 192)
    monkeypatch.setenv("RESNET_LIB_CACHE", str(tmp_path / "other"))
    for _ in range(2):  # decoded, and from the cache
        mapped = load(path)
        assert same(mapped, first) and torch.equal(mapped.mean, first.mean) and mapped.note == first.note
        assert mapped.train.images.permute(0, 2, 3, 1).is_contiguous(), "no copy of all is needed"
    assert len(list((tmp_path / "other").glob(f"{first.fingerprint}-*.npy"))) == 3
    assert not list((tmp_path / "other").glob("*.partial"))
    small = load(path, train_size=9)
    assert len(small.train) == 9 and small.fingerprint != first.fingerprint


MAPPED = """
import sys
from pathlib import Path
import numpy as np, torch
from resnet_lib import data, train
data.LARGE = 2**20
count = 40_000  # of 32×32 in colour: 123 MB
source = np.memmap(sys.argv[1] + "/source", np.uint8, "w+", shape=(count, 32, 32, 3)).transpose(0, 3, 1, 2)
images = data._chosen(source, np.random.default_rng(0).permutation(count), Path(sys.argv[1], "train.npy"))
split = data.Split(images, torch.zeros(count, dtype=torch.int64))
made = data.Dataset("large", split, split, split, ("a", "b"), "x", torch.zeros(3), torch.ones(3), "")
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
before = anonymous()
batches = train.Batches(made, split, train.TrainConfig(batch_size=500), torch.device("cpu"))
most = max(anonymous() for _ in batches.training(0, 0))
print(most - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's count of a process's own memory")
def test_training_on_pictures_in_a_file_holds_no_copy_of_them_in_memory(tmp_path):
    ran = subprocess.run([sys.executable, "-c", MAPPED, str(tmp_path)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) < 60, "MiB, of 117 that the pictures take"


def test_a_damaged_cache_file_is_reported_and_made_again(tmp_path, cache):
    path = write_tar(tmp_path / "a.tar", tree())
    first = load(path)
    (kept,) = cache.iterdir()
    flipped = bytearray((kept / "images.npy").read_bytes())
    flipped[len(flipped) // 3] ^= 255  # one byte among the pictures
    for name, content in (("images.npy", flipped), ("about.npz", (kept / "about.npz").read_bytes()[:300])):
        (kept / name).write_bytes(content)
        with pytest.warns(UserWarning, match="cannot be read, decoding again"):
            assert same(load(path), first)
        assert same(load(path), first)
    (kept / "about.npz").unlink()
    assert same(load(path), first)


def test_a_cache_that_cannot_be_written_is_reported_and_does_not_stop_the_load(tmp_path):
    path = write_tar(tmp_path / "a.tar", tree())
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match="not kept, .*file/cache cannot be written"):
        assert len(load(path, root=tmp_path / "file/cache").test) == 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a limit on file sizes")
@pytest.mark.parametrize("full_disk", [True, False], ids=["full disk", "killed"])
def test_a_failed_or_killed_write_leaves_no_half_file_under_the_final_name(tmp_path, cache, full_disk):
    path = write_tar(tmp_path / "a.tar", tree())
    action = "signal.SIG_IGN" if full_disk else "signal.SIG_DFL"
    script = f"""
import resource, signal, sys
from resnet_lib import data
signal.signal(signal.SIGXFSZ, {action})  # the default: the kernel kills the process during the write
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
data.load({str(path)!r}, progress=False, val_fraction=0.25)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if full_disk:
        assert run.returncode == 0 and "decoded pictures not kept" in run.stderr and not list(cache.iterdir())
    else:
        assert run.returncode < 0 and [file.suffix for file in cache.iterdir()] == [".partial"]
    assert len(load(path).test) == 6


# ---------------------------------------- decoding in parts

DECODING = """
import os, signal, sys
from pathlib import Path
from resnet_lib import data, decoding, pictures
pictures.PART_FILES, decoding.ALONE, stop = 7, int(sys.argv[2]), int(sys.argv[3])
path, seen, own = sys.argv[1], [], pictures.parts_of
def watched(*arguments):
    for part in own(*arguments):
        seen.append(isinstance(part.pixels, Path))
        if len(seen) == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        yield part
pictures.parts_of = watched
found = data.load(path, progress=False, val_fraction=0.25)
print(found.fingerprint, found.note, len(seen), sum(seen))
"""


def decoding(path, alone=99, stop=0):
    """A process that decodes 7 files at a time, by itself up to `alone` parts, and is killed at the part `stop`."""
    call = [sys.executable, "-c", DECODING, str(path), str(alone), str(stop)]
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def killed(path):
    with decoding(path, stop=3) as process:
        process.communicate()
    return process.returncode < 0


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_decoding_goes_on_from_its_finished_parts_unless_the_source_has_changed(tmp_path, cache, monkeypatch):
    files = tree(mode="RGB")
    path = write_tar(tmp_path / "a.tar", files)
    assert killed(path)
    (partial,) = cache.iterdir()
    assert sorted(file.name for file in partial.iterdir()) == ["000000.npz", "000001.npz", "000002.npz"]
    (partial / "000001.npz").write_bytes((partial / "000001.npz").read_bytes()[:-200])  # half-written, say
    made, own = [], decoders._decode
    monkeypatch.setattr(pictures, "PART_FILES", 7)
    monkeypatch.setattr(decoders, "ALONE", 99)
    monkeypatch.setattr(decoders, "_decode", lambda *arguments: made.append(1) or own(*arguments))
    resumed = load(path)
    assert len(made) == 30 - 2 * 7, "two parts were whole; the damaged one and the rest are decoded"
    assert [file.suffix for file in cache.iterdir()] == [""], "what was partial has gone"
    whole = load(path, root=tmp_path / "other")
    assert same(resumed, whole) and resumed.note == whole.note and len(made) == 16 + 30

    assert killed(path := write_tar(tmp_path / "b.tar", files | {"one/x.png": picture(3, "RGB")}))
    write_tar(path, files | {"one/x.png": picture(4, "RGB")})  # the same names, other pictures
    made.clear()
    load(path)
    assert len(made) == 31


def test_two_processes_that_decode_the_same_pictures_at_once_both_have_them_whole(tmp_path, cache):
    path = write_zip(tmp_path / "a.zip", tree(40, mode="RGB"))
    both = [decoding(path), decoding(path, alone=2)]  # one by itself, one with helpers
    found = []
    for process in both:
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        found.append(out.rsplit(" ", 2)[0])  # without its parts: who comes late finds them all in the cache
    expected = load(path, root=tmp_path / "other")
    assert found == [f"{expected.fingerprint} {expected.note}"] * 2
    assert len(list(cache.iterdir())) == 1


def test_parts_that_another_process_has_cleared_away_are_not_missed(tmp_path, cache, monkeypatch):
    path, own = write_zip(tmp_path / "a.zip", tree()), pictures._kept
    expected = load(path, root=tmp_path / "other")
    monkeypatch.setattr(pictures, "PART_FILES", 7)

    def slower(folder, *arguments):
        monkeypatch.setattr(pictures, "_kept", own)
        load(path)  # another that began as early, and is done
        assert not folder.with_suffix(".partial").exists()
        return own(folder, *arguments)

    monkeypatch.setattr(pictures, "_kept", slower)
    assert same(load(path), expected) and len(list(cache.iterdir())) == 1


def test_a_source_that_is_refused_leaves_nothing_in_the_cache(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(pictures, "PART_FILES", 7)
    with pytest.raises(ValueError, match="cannot use two/03.png"):
        load(write_zip(tmp_path / "a.zip", tree() | {"two/03.png": b"no picture"}))
    assert not list(cache.iterdir())


# ---------------------------------------- bad input


def bad_trees():
    files = tree()
    two = {name: content for name, content in files.items() if not name.startswith("two")}
    deep = {f"train/{name}": content for name, content in files.items()}
    yield ("no class folders", {"a.png": picture(0)}, "no class folders; pictures must lie as <class>/<picture>")
    yield "empty class", {**files, "three/": b""}, "class folder three in .* has no pictures"
    yield "hidden files only", {**files, "three/.DS_Store": b"x"}, "class folder three in .* has no pictures"
    yield "one class", {"one/1.png": picture(1)}, "has only the class 'one'"
    yield (
        "corrupt",
        {**files, "two/03.png": b"no picture"},
        "cannot use two/03.png in .*it is none: pictures of PNG, JPEG",
    )
    for kind in ("PNG", "JPEG"):
        cut = picture(0, kind=kind, size=(90, 90))[:-100]
        yield f"cut {kind}", {**files, "two/03.x": cut}, "cannot use two/03.x in .*truncated"
    yield (
        "mixed",
        {**files, "two/03.png": picture(0, "RGB")},
        "mixed: .*/.*png is grey \\(29 are\\), two/03.png is colour \\(1 are\\); colour='rgb' or",
    )
    yield (
        "alpha",
        {**files, "two/03.png": picture(0, "RGBA")},
        "two/03.png .*it is of mode RGBA, not grey .* or RGB; colour='rgb' or colour='grey' converts it, and 0 more",
    )
    yield ("bomb", {**files, "two/03.png": picture(0, "1", size=(10000, 9000))}, "two/03.png .*decompression bomb")
    yield "deep", {**files, "one/more/1.png": picture(1)}, "folder one/more in .* is out of place"
    yield "val lacks", {**deep, "val/one/1.png": picture(1)}, "val/ in .* has no class 'two'; train, val need the same"
    yield "more", {**deep, "test/one/1.png": picture(1), "extra/x/1.png": picture(1)}, "folder extra.* is out of place"
    yield "twice", {**deep, **tree(wrap="val/"), **tree(wrap="valid/")}, "two of which mean the same split"
    flat = {f"{part}/{i}.png": picture(i) for part in ("train", "test") for i in range(9)}
    yield "flat", flat, "test/, train/ in .* hold pictures without class folders, so their classes are not known"
    yield "unlabelled", {**deep, "test/1.png": picture(1)}, "test/ in .* has no class folders, so its pictures have no"
    yield "empty file", {**files, "two/03.png": b""}, "cannot use two/03.png in .*it is empty"
    yield "page", {**files, "two/03.png": b"<html>"}, "cannot use two/03.png in .*it is text, HTML or the like"
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"
    yield "program", {**files, "two/03.png": program}, "cannot use two/03.png in .*it is none: pictures of"
    key = io.BytesIO()
    Image.open(io.BytesIO(picture(0, "P"))).save(key, "PNG", transparency=3)
    yield "colour key", {**files, "two/03.png": key.getvalue()}, "it has transparency; colour='rgb'"
    yield "test lacks", {**deep, **{f"test/{n}": c for n, c in two.items()}}, "test/ in .* has no class 'two'"
    yield ("train lacks", {**deep, **tree(wrap="test/"), "test/x/1.png": picture(1)}, "train/ in .* no class 'x'")
    yield ("small class", {**files, "three/1.png": picture(3)}, "class 'three' has too few pictures, 1, for one in the")


@pytest.mark.parametrize(("files", "message"), [pytest.param(*case, id=name) for name, *case in bad_trees()])
@pytest.mark.parametrize("write", [write_folder, write_tar, write_zip])
def test_a_bad_tree_is_refused_by_name(tmp_path, write, files, message):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path / "bad", files))


@pytest.mark.parametrize("name", ["../one/evil.png", "/one/evil.png", "one/../../evil.png", "C:\\evil.png"])
@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_a_member_that_leads_out_of_the_archive_is_refused(tmp_path, write, name):
    with pytest.raises(ValueError, match=r"evil.png' in .*bad leads out of the archive"):
        load(write(tmp_path / "bad", {**tree(), name: picture(0)}))


def test_links_in_an_archive_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'one/link.png' in .* is a link"):
        load(write_tar(tmp_path / "a.tar", {**tree(), "one/link.png": "/etc/passwd"}))
    info = zipfile.ZipInfo("one/link.png")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match="'one/link.png' in .* is a link"):
        load(tmp_path / "a.zip")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "zip"])
def test_a_truncated_archive_is_refused(tmp_path, kind, share):
    path = tmp_path / f"a.{kind}"
    write_zip(path, tree()) if kind == "zip" else write_tar(path, tree(), f"w:{kind[4:]}")
    # 30 members, each a header and a picture of 512 bytes: a tar is cut between two, unseen by tarfile
    size = 30 * 1024 if kind == "tar" else path.stat().st_size
    os.truncate(path, int(size * share) // 1024 * 1024 if kind == "tar" else int(size * share))
    with pytest.raises(ValueError, match=rf"a.{kind} is cut off or damaged"):
        load(path)


def test_an_archive_with_a_flipped_byte_is_refused(tmp_path):
    for path in (write_tar(tmp_path / "a.tar.xz", tree(), "w:xz"), write_zip(tmp_path / "a.zip", tree())):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path.name} is cut off or damaged"):
            load(path)


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "a.tar.xz").write_bytes(b"Rar!\x1a\x07" + bytes(range(256)) * 8)
    with pytest.raises(ValueError, match=r"a.tar.xz is no .tar, .tar.gz, .tar.xz or .zip"):
        load(tmp_path / "a.tar.xz")


def test_a_file_too_big_for_a_picture_is_refused_unread(tmp_path):
    (tmp_path / "bad/one").mkdir(parents=True)
    with open(tmp_path / "bad/one/big.png", "wb") as file:
        file.truncate(archives.MAX_FILE_BYTES + 1)
    with pytest.raises(ValueError, match="'one/big.png' in .* has 268435457 bytes, more than"):
        load(tmp_path / "bad")


def test_pictures_too_many_for_memory_are_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_TOTAL_BYTES", 1000)
    with pytest.raises(ValueError, match="take over 1000 bytes; give an image_size"):
        load(write_zip(tmp_path / "a.zip", tree()))


def test_an_unknown_name_lists_the_known_ones_and_suggests(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'cifra10' .* digits, cifar10, .*; did you mean 'cifar10'"):
        data.load("cifra10")
    write_zip(tmp_path / "pets.zip", tree())
    with pytest.raises(FileNotFoundError, match=r"no existing path .* did you mean 'pets.zip'"):
        data.load(tmp_path / "pet.zip")
    with pytest.raises(FileNotFoundError):
        data.load("")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_fraction": 0}, "val_fraction=0 must lie between 0 and 1"),
        ({"val_fraction": 1.0}, "val_fraction=1.0 must lie between 0 and 1"),
        ({"val_fraction": float("nan")}, "val_fraction=nan must lie between 0 and 1"),
        ({"val_fraction": 0.001}, "too few pictures, .*, for one in the validation split at val_fraction=0.001"),
        ({"train_size": -1}, "train_size=-1 must be 0 or more"),
        ({"train_size": 5000}, "train_size=5000 is more than the 1294 left"),
        ({"train_size": 5}, "train_size=5 leaves a class without a picture; it takes 1[0-9] or more"),
        ({"image_size": 0}, "image_size=0 1 or more"),
        ({"mirror": "http://localhost"}, "mirror='http://localhost' serves cifar10.* 'digits' is not"),
    ],
)
def test_nonsense_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load("digits", **arguments)


# ---------------------------------------- torchvision's sets


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def mirror(tmp_path):
    """A folder, and the address at which a web server on this machine serves it."""
    (tmp_path / "mirror").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "mirror"))
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield tmp_path / "mirror", f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz"),
        ("fashion_mnist", "train-images-idx3-ubyte.gz"),
    ],
)
def test_a_wrong_checksum_is_refused(mirror, name, file):
    folder, address = mirror
    (folder / file).write_bytes(b"not the published archive")
    with pytest.raises(ValueError, match=rf"{name} from {address}/.* has not the published checksum"):
        data.load(name, mirror=address)


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_an_unreachable_mirror_is_named(name):
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        address = f"http://127.0.0.1:{server.server_port}"  # closed again: nobody listens there
    with pytest.raises(OSError, match=rf"{name} cannot be fetched from {address}/.* into "):
        data.load(name, mirror=address)


def md5(content):
    return hashlib.md5(content).hexdigest()


def test_cifar_comes_from_the_mirror_with_given_test_set(mirror, tmp_path, monkeypatch):
    """The archive is a small one in the published format; torchvision is told its checksums."""
    from torchvision.datasets import CIFAR10

    pixels = np.random.default_rng(0).integers(0, 256, (60, 3072), dtype=np.uint8)
    batches = {
        part: pickle.dumps({"data": pixels[rows], "labels": [i % 3 for i in range(60)[rows]]})
        for part, rows in (("data_batch_1", slice(0, 40)), ("test_batch", slice(40, 60)))
    }
    batches["batches.meta"] = pickle.dumps({"label_names": ["airplane", "bird", "cat"]})
    folder, address = mirror
    members = {f"cifar-10-batches-py/{part}": content for part, content in batches.items()}
    archive = write_tar(folder / CIFAR10.filename, members, "w:gz")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive.read_bytes()))
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", md5(batches["data_batch_1"])]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5(batches["test_batch"])]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(batches["batches.meta"])})

    with pytest.raises(ValueError, match="mirror='file:///x' must be an http address"):
        load("cifar10", mirror="file:///x")
    cifar = load("cifar10", mirror=address, root=tmp_path / "root")
    assert [len(part) for part in (cifar.train, cifar.val, cifar.test)] == [30, 10, 20]
    assert cifar.class_names == ("airplane", "bird", "cat") and cifar.name == "cifar10"
    assert rows(cifar.test) == {(i % 3, *pixels[i].tolist()) for i in range(40, 60)}
    archive.unlink()
    assert same(cifar, load("cifar10", root=tmp_path / "root"))  # not fetched again


def test_fashion_mnist_is_grey(mirror, monkeypatch):
    from torchvision.datasets import FashionMNIST

    folder, address = mirror
    resources = []
    for file, _ in FashionMNIST.resources:
        count = 100 if "train" in file else 20
        if "images" in file:
            content = struct.pack(">4i", 0x803, count, 28, 28) + bytes(range(256)) * (count * 784 // 256 + 1)
            content = content[: 16 + count * 784]
        else:
            content = struct.pack(">2i", 0x801, count) + bytes(i % 10 for i in range(count))
        (folder / file).write_bytes(gzip.compress(content))
        resources.append((file, md5((folder / file).read_bytes())))
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    fashion = load("fashion_mnist", mirror=address)
    assert fashion.train.images.shape == (75, 1, 28, 28) and len(fashion.test) == 20
    assert fashion.class_names[-1] == "Ankle boot"


# ---------------------------------------- the real archive


@pytest.mark.skipif("BOOK_CIFAR10" not in os.environ, reason="BOOK_CIFAR10 names no archive of CIFAR-10")
def test_the_real_archive_decodes_in_30_seconds_and_loads_in_one_the_next_time():
    times = []
    for _ in range(2):
        start = time.perf_counter()
        cifar = data.load(os.environ["BOOK_CIFAR10"], progress=False)
        times.append(time.perf_counter() - start)
    assert times[0] <= 30 and times[1] <= 1, times
    assert [len(part) for part in (cifar.train, cifar.val, cifar.test)] == [45000, 5000, 10000]
    assert cifar.train.images.shape[1:] == (3, 32, 32) and len(cifar.class_names) == 10
    assert torch.equal(torch.bincount(cifar.val.labels), torch.full((10,), 500))
