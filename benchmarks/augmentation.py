"""Images per second of augmentation with one draw for each image, and what one draw for a whole batch would save."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import Table, faster
from benchmarks.data_pipeline import PerImage, random_dataset
from resnet_lib import augment, bench, devices, train
from resnet_lib.data import Dataset

OURS = "resnet_lib"
LOADED = "torchvision v2 per image, DataLoader, 2 workers"
KORNIA = "kornia, a draw for each image"
ONCE = "torchvision v2 on the batch, one draw for all"
PADDING, HOLE = 4, 12  # pixels


def streams(dataset: Dataset, batch_size: int, cut: bool, device: torch.device) -> dict[str, Callable[[], Iterator]]:
    """Of each variant, a function that begins an epoch: cropped, flipped, perhaps cut, normalised float32 batches."""
    from kornia import augmentation as kornia
    from torchvision.transforms import v2

    images = dataset.train.images.to(device)
    side, channels = images.shape[-1], images.shape[1]
    mean, std = dataset.mean[:channels], dataset.std[:channels]
    square = {"p": 1.0, "scale": (HOLE**2 / side**2,) * 2, "ratio": (1.0, 1.0), "value": 0}
    steps = [v2.RandomCrop(side, PADDING), v2.RandomHorizontalFlip()] + ([v2.RandomErasing(**square)] if cut else [])
    transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean.tolist(), std.tolist())])
    steps = [kornia.RandomCrop((side, side), PADDING), kornia.RandomHorizontalFlip()]
    steps += [kornia.RandomErasing(**square)] if cut else []
    chain = torch.nn.Sequential(*steps, kornia.Normalize(mean, std)).to(device)
    library = train.Batches(dataset, dataset.train, train.TrainConfig(batch_size=batch_size), device)
    last = images.contiguous(memory_format=torch.channels_last)  # as `Batches` keeps them
    # Workers live on from epoch to epoch, so their start is not timed.
    loader = torch.utils.data.DataLoader(
        PerImage(dataset.train, transform), batch_size, drop_last=True, num_workers=2, persistent_workers=True
    )

    def ours(batch: Tensor) -> Tensor:
        return library._prepare(augment.random_crop_flip_cutout(batch, PADDING, size=HOLE if cut else 0))

    def whole(function: Callable[[Tensor], Tensor], source: Tensor) -> Callable[[], Iterator]:
        return lambda: (function(batch) for batch in source.split(batch_size) if len(batch) == batch_size)

    return {
        OURS: whole(ours, last),
        LOADED: lambda: (batch.to(device) for batch, _ in loader),
        KORNIA: whole(lambda batch: chain(batch / 255), images),
        ONCE: whole(transform, images),
    }


def distinct(stream: Callable[[], Iterator], dataset: Dataset) -> list[int]:
    """How many different windows each batch shows, of a dataset that is one picture over and over.

    Raises: ValueError where a result is no window of the padded picture, as it is or mirrored.
    """
    picture = dataset.train.images[0] / 255
    side, reach = picture.shape[-1], range(2 * PADDING + 1)
    found = [
        (F.pad(image, (PADDING,) * 4)[:, top : top + side, left : left + side] - dataset.mean[:, None, None])
        / dataset.std[:, None, None]
        for image in (picture, picture.flip(2))
        for top in reach
        for left in reach
    ]
    windows = torch.stack(found).flatten(1)
    counts = []
    for batch in stream():
        apart, which = torch.cdist(batch.cpu().flatten(1).contiguous(), windows).min(1)
        if apart.max() > 0.1:
            raise ValueError("an augmented picture is no window of the picture")
        counts.append(len(which.unique()))
    return counts


def geometry(batch: Tensor) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    """By name, the same family of changes by resnet_lib and by kornia, of float images."""
    from kornia import augmentation as kornia

    pixels = 0.1 * batch.shape[-1]
    peers = {
        "rotation": kornia.RandomRotation(15.0, p=1.0, align_corners=False),
        "translation": kornia.RandomTranslate((-0.1, 0.1), (-0.1, 0.1), p=1.0),
        "shear": kornia.RandomShear(15.0, p=1.0),
        "affine": kornia.RandomAffine(15.0, (0.1, 0.1), (0.9, 1.1), 5.0, p=1.0),
    }
    own = {
        "rotation": lambda: augment.rotate(batch, 15.0),
        "translation": lambda: augment.translate(batch, pixels, pixels),
        "shear": lambda: augment.shear(batch, 15.0),
        "affine": lambda: augment.affine(batch, degrees=15.0, x=pixels, y=pixels, factor=0.1, shear_x=5.0),
    }
    return {name: (own[name], lambda peer=peer: peer(batch)) for name, peer in peers.items()}


def consume(stream: Callable[[], Iterator]) -> Callable[[], None]:
    def epoch() -> None:
        for _ in stream():
            pass

    return epoch


def run(rounds: int = 5, quick: bool = False) -> Iterator[Table]:
    device = devices.choose()
    size, batch_size = (128, 64) if quick else (20_480, 512)
    dataset = random_dataset(size)
    copies = random_dataset(batch_size)
    copies.train.images[:] = copies.train.images[0].clone()
    counts = {name: distinct(stream, copies)[0] for name, stream in streams(copies, batch_size, False, device).items()}
    if counts.pop(ONCE) != 1 or min(counts.values()) < batch_size // 5:
        raise ValueError(f"draws are not what they are said to be: {counts}")
    note = f"in a batch of {batch_size} copies of one picture, {ONCE!r} shows 1 window; the others {counts}"
    for cut in (False, True):
        calls = {name: consume(stream) for name, stream in streams(dataset, batch_size, cut, device).items()}
        rows = bench.compare(calls, reference=LOADED, rounds=rounds, warmup=1)
        bounds = ((LOADED, 10.0), (KORNIA, 2.5), (ONCE, 1.1))
        title = f"Crop, flip{', cutout' if cut else ''}, normalise: {size:,} images, batch {batch_size}"
        targets = [faster(rows, OURS, peer, bound) for peer, bound in bounds]
        yield Table(title if cut else f"{title}\n  {note}", rows, targets, reference=LOADED, work=size)
    batch = dataset.train.images[:batch_size].to(device) / 255
    for name, (own, peer) in geometry(batch).items():
        rows = bench.compare({OURS: own, KORNIA: peer}, reference=KORNIA, rounds=rounds, number=1 if quick else 10)
        title = f"{name.capitalize()}, bilinear, batch {batch_size} of float images"
        yield Table(title, rows, [faster(rows, OURS, KORNIA, 2.0)], reference=KORNIA, work=batch_size)
