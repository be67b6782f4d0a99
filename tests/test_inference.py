"""Ways to run a trained network: each gives the plain network's answers, whatever batch it is asked; one command."""

import json
import sys

import pytest
import torch
from torch import nn

from resnet_lib import data, inference, resnets, runtimes, stats, train

pytestmark = pytest.mark.filterwarnings("default")  # exporters of other packages warn as they please


@pytest.fixture(scope="module")
def model():
    """A small network whose norms have statistics and scales of their own."""
    with train.seeded(0):
        model = resnets.resnet_cifar(8)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
        for _ in range(3):
            model.train()(torch.randn(32, 3, 16, 16) * 2 + 1)
    return model.eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 + 1


@pytest.fixture(scope="module")
def found(model, images):
    return inference.variants(model, images, images, compiled=False)


FEW = {name: inference.WAYS[name] for name in (inference.REFERENCE, "folded", "ONNX Runtime", "OpenVINO, 8 bits")}


def off(way, model, images):
    with torch.no_grad():
        expected = model(images)
    return ((way(images) - expected).norm() / expected.norm()).item()


def test_folding_leaves_no_norm_and_the_same_logits_and_its_source_alone(model, images):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused = inference.folded(model, images)
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    assert off(torch.no_grad()(fused), model, images) < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Reused(nn.Module):
    """Convolutions and norms that are used as `how` says."""

    def __init__(self, how):
        super().__init__()
        self.how, self.conv, self.last = how, nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.norm, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=how != "no statistics")

    def forward(self, x):
        match self.how:
            case "convolution twice":
                return self.conv(self.norm(self.conv(x)))
            case "pair twice":
                return self.norm(self.conv(self.norm(self.conv(x))))
            case "two norms":
                return self.norm(self.conv(x)) + self.other(self.conv(x))
            case "two users":
                x = self.conv(x)
                return self.norm(x) + x
            case "norm twice":
                return self.norm(self.last(self.norm(self.conv(x))))
            case "no statistics":
                return self.other(self.conv(x))
        return self.norm(self.conv(x)) + self.other(self.last(x))


@pytest.mark.parametrize(
    ("how", "left"),
    [
        ("convolution twice", 1),
        ("pair twice", 1),
        ("two norms", 2),
        ("two users", 1),
        ("norm twice", 1),
        ("no statistics", 1),
        ("each once", 0),
    ],
)
def test_a_norm_stays_where_folding_it_would_be_wrong(how, left, images):
    with train.seeded(0):
        model = Reused(how)
        for _ in range(5):
            model.train()(torch.randn(16, 3, 16, 16) * 3 + 2)
    fused = inference.folded(model, images)
    assert len([m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]) == left
    assert model.training, "the user's network stays as it was"
    assert off(torch.no_grad()(fused), model.eval(), images) < 1e-5


def test_a_network_that_cannot_be_traced_or_does_not_prove_itself_is_refused(images, monkeypatch):
    class Asking(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match="Asking cannot be traced, so nothing is folded"):
        inference.folded(Asking(nn.Conv2d(3, 3, 1)), images)
    wrong = torch.nn.utils.fusion.fuse_conv_bn_eval
    monkeypatch.setattr(
        torch.nn.utils.fusion, "fuse_conv_bn_eval", lambda conv, norm: wrong(conv, nn.BatchNorm2d(3).eval())
    )
    model = Reused("each once")
    model(torch.randn(16, 3, 16, 16) * 3 + 2)
    with pytest.raises(ValueError, match="Reused folded gives other outputs: a relative error of"):
        inference.folded(model, images)


def test_a_way_with_other_outputs_is_left_out_and_why_is_said(model, images, monkeypatch):
    real = inference.folded
    monkeypatch.setattr(inference, "folded", lambda net, example: nn.Sequential(real(net, example), Negative()))
    ways, missing = inference.variants(model, images, images, recipes=FEW)
    assert "folded" not in ways and "ONNX Runtime" in ways
    assert missing["folded"] == "its logits are off by 2 of the plain network's"


class Negative(nn.Module):
    def forward(self, x):
        return -x


def test_making_variants_or_a_file_leaves_a_network_in_training_mode(images, tmp_path):
    model = resnets.resnet_cifar(8)
    inference.variants(model, images, images, recipes=FEW)
    runtimes.export_onnx(model, images, tmp_path / "network.onnx")
    assert all(module.training for module in model.modules())


def test_every_way_gives_the_plain_networks_logits_within_its_format(found, model, images):
    ways, missing = found
    assert next(iter(ways)) == inference.REFERENCE and set(ways) | set(missing) == set(inference.WAYS)
    assert "was not asked for" in missing["folded, channels-last, compiled"]
    assert "CUDA graphs need" in missing["folded, channels-last, float16, CUDA graph"]
    numbers = {name: inference.WAYS[name].numbers for name in ways}
    wanted = {"float32": 1e-5, "bfloat16": 0.03, "int8": 0.1}
    measured = {name: off(way, model, images) for name, way in ways.items()}
    assert all(measured[name] <= wanted[numbers[name]] for name in ways), measured
    assert {"ONNX Runtime, 8 bits", "OpenVINO, 8 bits", "OpenVINO, 8 bits, in parts"} <= set(ways)
    assert measured["ONNX Runtime, 8 bits"] > 1e-4 < measured["OpenVINO, 8 bits"], "eight bits round"


def test_every_way_returns_float32_without_a_gradient(found, images):
    for name, way in found[0].items():
        logits = way(images)
        assert logits.dtype == torch.float32 and logits.shape == (8, 10) and not logits.requires_grad, name


def test_a_way_from_a_file_takes_any_batch_in_any_layout(found, model, images):
    eight = found[0]["OpenVINO, 8 bits"](images)
    for count in (1, 3, 8):
        for name in ("ONNX Runtime", "OpenVINO"):
            asked = images[:count].to(memory_format=torch.channels_last)
            assert off(lambda x, way=found[0][name]: way(x.to(memory_format=torch.channels_last)), model, asked) < 1e-5
        parts = found[0]["OpenVINO, 8 bits, in parts"](images[:count])
        assert torch.allclose(parts, eight[:count], atol=1e-4), "each picture's own, in its place"


def test_an_answer_is_not_overwritten_by_the_next(found, images):
    for name, way in found[0].items():
        first = way(images)
        kept = first.clone()
        way(images.flip(0))
        assert torch.equal(first, kept), name


def test_the_plain_network_is_not_changed(found, model, images):
    assert not model.training
    assert next(model.parameters()).dtype == torch.float32
    assert off(found[0][inference.REFERENCE], model, images) == 0


@pytest.mark.parametrize(
    ("package", "gone", "left"),
    [
        ("onnxruntime", ("ONNX Runtime", "OpenVINO, 8 bits"), ("folded",)),
        ("openvino", ("OpenVINO, 8 bits",), ("folded", "ONNX Runtime")),
    ],
)
def test_without_a_package_the_rest_is_there_and_why_is_said(package, gone, left, model, images, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    ways, missing = inference.variants(model, images, images, recipes=FEW)
    assert set(left) <= set(ways) and set(gone) == set(missing)
    assert all(package in missing[name] and "pip install" in missing[name] for name in gone)


def test_a_network_that_does_not_compile_is_left_out_and_why_is_said(model, images, monkeypatch):
    def fails(images):
        raise RuntimeError("no compiler found\nin any of these places")

    monkeypatch.setattr(torch, "compile", lambda model, **options: fails)
    name = "folded, channels-last, compiled"
    ways, missing = inference.variants(model, images, images, recipes=FEW | {name: inference.WAYS[name]})
    assert name not in ways and missing == {name: "no compiler found"}


def test_a_scale_for_each_channel_and_sums_in_floats_change_the_file(model, images):
    import onnx

    files = runtimes.Files(model, images, images)

    def read(**options):
        graph = onnx.load_from_string(files.eight(**options)).graph
        return graph, sum(node.op_type == "QuantizeLinear" for node in graph.node)

    (full, all_in), (plain, without) = read(), read(sums=False)
    added = {name for node in plain.node if node.op_type == "Add" for name in node.output}
    assert all_in != without and added
    scales = {
        name: max((list(one.dims) or [1])[0] for one in graph.initializer if one.name.endswith("_scale"))
        for name, graph in {"a channel": full, "a layer": read(per_channel=False)[0]}.items()
    }
    assert scales == {"a channel": 64, "a layer": 1}
    assert files.eight() is files.eight(), "made once"
    other = files.calibrated(images * 3)
    assert other.plain is files.plain and other.eight() != files.eight() == files.eight(), "ranges of its own"


def test_weights_have_seven_bits_where_a_cpu_adds_pairs_of_products_in_sixteen(model, images, monkeypatch):
    import onnx

    def largest(instructions, machine):
        monkeypatch.setattr(runtimes.devices, "instruction_sets", lambda: instructions)
        monkeypatch.setattr(runtimes.platform, "machine", lambda: machine)
        graph = onnx.load_from_string(runtimes.Files(model, images, images).eight()).graph
        weights = [onnx.numpy_helper.to_array(one) for one in graph.initializer]
        return max(abs(int(w.min())) for w in weights if w.dtype == "int8" and w.ndim == 4)

    assert largest(["avx512_vnni"], "x86_64") == largest([], "arm64") > 100
    assert largest([], "x86_64") <= 64


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runtime": "TensorRT"}, "runtime='TensorRT' is not one of 'PyTorch'"),
        ({"numbers": "int4"}, "numbers='int4' is not one of"),
        ({"numbers": "int8"}, "needs a runtime that has them: 'ONNX Runtime', 'OpenVINO'"),
        ({"in_parts": True}, "in_parts=True needs runtime='OpenVINO'"),
    ],
)
def test_a_recipe_that_nothing_can_follow_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        inference.Recipe(**changes)


def seen(*speeds, name="fast"):
    return [{"name": name, "round": k, "calls_s": [9.0, 1 / v, 1 / v]} for k, v in enumerate(speeds)]


def test_a_way_is_chosen_in_some_rounds_and_timed_in_others_by_medians():
    rounds = inference.CHOOSING_ROUNDS
    plain = seen(*[1.0] * (rounds + 2), name=inference.REFERENCE)
    rows = plain + seen(*[9.0] * rounds, 2.0, 2.0) + seen(*[3.0] * rounds, 4.0, 4.0, name="steady")
    assert inference.fastest(rows, ["fast", "steady"]) == "fast"
    assert inference.speedup(rows, "fast").mean == pytest.approx(2) and inference.speedup(rows, "fast").n == 2
    middle, high = inference.percentiles(rows, "steady")
    assert middle == 0.25 and high == pytest.approx(9.0)


def test_what_is_lost_and_what_is_gained_add_up():
    labels = torch.tensor([0, 0, 1, 1, inference.UNKNOWN])

    def named(*guesses):
        return lambda images: torch.eye(2)[list(guesses)]

    ways = {inference.REFERENCE: named(0, 0, 0, 1, 0), "other": named(0, 1, 1, 1, 1)}
    plain, other = inference.judged(ways, [(torch.zeros(5, 1), labels)])
    assert plain == {"name": inference.REFERENCE, "accuracy": 0.75, "same": 1, "lost": 0, "gained": 0}
    assert other == {"name": "other", "accuracy": 0.75, "same": 0.5, "lost": 0.25, "gained": 0.25}


@pytest.fixture
def saved(tmp_path):
    """A file of a network for the digits, and one of bare weights."""
    with train.seeded(0):
        model = resnets.resnet_cifar(8, in_channels=1)
    inference.save_network(model, tmp_path / "whole.pt")
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    return tmp_path, model.eval()


def test_a_saved_network_and_bare_weights_with_a_name_give_the_same_network(saved, images):
    folder, model = saved
    grey = {"channels": 1, "classes": 10}
    whole = inference.load_network(folder / "whole.pt", **grey)
    bare = inference.load_network(folder / "bare.pt", "resnet8_cifar", **grey)
    for net in (whole, bare):
        assert not net.training and torch.equal(net(images[:, :1]), model(images[:, :1]))
    from torchvision import models

    torch.save(models.resnet18(num_classes=3).state_dict(), folder / "theirs.pt")
    assert inference.load_network(folder / "theirs.pt", "resnet18", channels=3, classes=3).fc.out_features == 3


class Harmful:
    """What a pickle can do when it is loaded."""

    def __reduce__(self):
        return print, ("this must not run",)


def test_a_network_that_is_none_is_refused_by_name_and_nothing_in_it_is_run(saved, capsys):
    folder, _ = saved
    grey = {"channels": 1, "classes": 10}
    (folder / "text.pt").write_text("no weights")
    torch.save([1, 2], folder / "list.pt")
    torch.save({"model": Harmful()}, folder / "harmful.pt")
    for name, given, words in (
        ("text.pt", grey, "text.pt holds no weights, or more than weights"),
        ("harmful.pt", grey, "harmful.pt holds no weights, or more than weights"),
        ("list.pt", grey, "list.pt holds a list; it must hold weights by name"),
        ("bare.pt", grey, "bare.pt holds bare weights: say with --architecture"),
        ("bare.pt", grey | {"architecture": "resnet20_cifar"}, "weights of .*bare.pt are not those of resnet20_cifar"),
        (
            "bare.pt",
            grey | {"architecture": "mobilenet_v2"},
            "architecture='mobilenet_v2' is not known for pictures of 1",
        ),
        ("whole.pt", grey | {"classes": 3}, "whole.pt was made for 10 classes, and the pictures have 3"),
        ("whole.pt", grey | {"channels": 3}, "whole.pt was made for 1 channels, and the pictures have 3"),
    ):
        with pytest.raises(ValueError, match=words):
            inference.load_network(folder / name, **given)
    with pytest.raises(OSError, match="nowhere.pt"):
        inference.load_network(folder / "nowhere.pt", **grey)
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--rounds", "3"], "--rounds 3 must be at least 5: the first 3 choose"),
        (["--batches", "0", "8"], "--batches 0 must be at least 1"),
        (["--batches", "9999"], "--batches 9999 is more than the 359 pictures to test"),
        (["--threads", "-1"], "--threads -1 must be at least 0"),
        (["--std", "0"], "--std [0.0] must be 1 number(s), one a channel, above 0"),
        (["--mean", "0", "0"], "--mean [0.0, 0.0] must be 1 number(s), one a channel"),
        (["--dataset", "nowhere.zip"], "'nowhere.zip' is no existing path"),
        (["--device", "tpu"], "device='tpu'"),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused_before_anything_is_timed(changes, words, saved, capsys):
    folder, _ = saved
    assert inference.main(["--network", str(folder / "whole.pt"), "--dataset", "digits", *changes]) == 2
    assert words in capsys.readouterr().err


def test_one_command_prints_every_way_and_writes_the_fastest_as_a_file_that_answers_alike(saved, capsys, monkeypatch):
    folder, model = saved
    monkeypatch.setattr(inference, "fastest", lambda rows, names: "ONNX Runtime")
    files = {"--onnx": folder / "fast.onnx", "--json": folder / "fast.json"}
    given = ["--network", str(folder / "whole.pt"), "--dataset", "digits", "--batches", "1", "4", "--rounds", "5"]
    before = torch.get_num_threads()
    assert inference.main([*given, *(str(word) for pair in files.items() for word in pair), "--threads", "1"]) == 0
    assert torch.get_num_threads() == before
    said = capsys.readouterr().out
    assert "| ONNX Runtime |" in said and "fastest at batch 4 with at most 0.5% of accuracy lost: ONNX Runtime" in said
    content = json.loads(files["--json"].read_text())
    assert {row["name"] for row in content["rows"]} | set(content["missing"]) == set(inference.WAYS)
    digits = data.load("digits")
    config = train.TrainConfig(device="cpu", channels_last=False)
    images, labels = next(train.Batches(digits, digits.test, config, torch.device("cpu")).in_order(len(digits.test)))
    answers = runtimes.onnxruntime(files["--onnx"].read_bytes())(images)
    assert stats.exact(off(lambda x: answers, model, images)).mean < 1e-5
    right = (answers.argmax(1) == labels).float().mean().item()
    plain = next(row for row in content["rows"] if row["name"] == inference.REFERENCE)
    assert right == pytest.approx(plain["accuracy"])


def test_no_file_is_written_where_the_fastest_way_answers_from_none(tmp_path):
    with pytest.raises(ValueError, match="'folded', which answers from no ONNX file"):
        inference.write_onnx({"best": {1: "folded"}}, tmp_path / "fast.onnx", 1)
    assert not list(tmp_path.iterdir())
