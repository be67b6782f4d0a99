"""Images per second of one epoch of shuffled, cropped, flipped, normalised batches."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import Table, faster
from resnet_lib import augment, bench, devices, train
from resnet_lib.data import Dataset, Split

OURS = "resnet_lib"
WORKERS = (0, 2)


class PerImage(torch.utils.data.Dataset):
    """Images one by one through a transform, as torch's DataLoader wants them."""

    def __init__(self, split: Split, transform: Callable[[Tensor], Tensor]):
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.split.images[index]), self.split.labels[index]


def random_dataset(size: int) -> Dataset:
    """CIFAR-10's shapes; what the pixels show does not change the time."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.randint(0, 10, (size,), generator=generator))
    pixels = images / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    names = tuple("0123456789")
    return Dataset("random", split, split, split, names, "random", mean, std, "random pixels")


def name_of(workers: int) -> str:
    return f"torchvision v2, DataLoader, {workers} workers"


def streams(dataset: Dataset, batch_size: int, device: torch.device) -> dict[str, Callable[[], Iterator]]:
    """For each variant, a function that starts a new epoch's stream of (images, labels) on the device."""
    from torchvision.transforms import v2

    def crop_flip(images, generator):
        return augment.random_crop_flip(images, 4, 0.5, generator)

    config = train.TrainConfig(batch_size=batch_size)
    batches = train.Batches(dataset, dataset.train, config, device, crop_flip)
    transform = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(dataset.mean.tolist(), dataset.std.tolist()),
        ]
    )

    def loaded(workers: int) -> Callable[[], Iterator]:
        # Workers live on from epoch to epoch, so their start is not timed.
        loader = torch.utils.data.DataLoader(
            PerImage(dataset.train, transform),
            batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        return lambda: ((images.to(device), labels.to(device)) for images, labels in loader)

    return {OURS: lambda: batches.training(0, 0)} | {name_of(n): loaded(n) for n in WORKERS}


def run(rounds: int = 5, quick: bool = False) -> Iterator[Table]:
    device = devices.choose()
    size, batch_size = (256, 64) if quick else (10_000, 512)

    def consume(stream: Callable[[], Iterator]) -> Callable[[], None]:
        def epoch() -> None:
            for _ in stream():
                pass

        return epoch

    calls = {name: consume(stream) for name, stream in streams(random_dataset(size), batch_size, device).items()}
    best = name_of(WORKERS[0])
    rows = bench.compare(calls, reference=best, rounds=rounds, warmup=1)
    better = min(rows[1:], key=lambda row: row["time_s"])["name"]
    work = size // batch_size * batch_size
    title = f"Data pipeline: crop, flip, normalise, {work:,} images, batch {batch_size}; {rounds} interleaved rounds"
    yield Table(title, rows, [faster(rows, OURS, better, 8.0)], reference=best, work=work)
