"""The device that is chosen is there, and is described; a wrong name is named."""

import pytest
import torch

from resnet_lib import devices

CPU = torch.device("cpu")


def test_a_gpu_asked_for_where_there_is_none_is_an_error():
    for name, missing in (("cuda", not torch.cuda.is_available()), ("mps", not torch.backends.mps.is_available())):
        if missing:
            with pytest.raises(ValueError, match=f"device='{name}': this machine has .*use 'auto' or 'cpu'"):
                devices.choose(name)
    with pytest.raises(ValueError, match=r"device='cuda:99': this machine has \d+ CUDA GPU\(s\)"):
        devices.choose("cuda:99")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "device='gpu' is not a device; use 'auto', 'cpu', 'cuda'"),
        ("meta", "device='meta': only 'cpu', 'cuda' and 'mps'"),
    ],
)
def test_a_name_that_is_no_device_here_is_named(name, message):
    with pytest.raises(ValueError, match=message):
        devices.choose(name)


def test_auto_takes_the_best_that_is_there():
    found = devices.choose("auto")
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert found.type == expected and devices.choose("cpu") == CPU


def test_a_machine_is_described_in_plain_values():
    found = devices.describe(CPU)
    assert found["threads"] == torch.get_num_threads() and found["cpu"] and found["cpu"] in found["name"]
    assert all(isinstance(value, str | int | list) for value in found.values())
    devices.synchronise(CPU)
