"""The chapter on inference: what it measures, and what it says of the strongest records."""

from resnet_lib import inference, page
from resnet_lib.experiments.inference.accuracy import ACCURACY
from resnet_lib.experiments.inference.networks import slug
from resnet_lib.experiments.inference.speed import SPEED
from resnet_lib.experiments.inference.steps import LADDER

EXPERIMENTS = (ACCURACY, SPEED, LADDER)

MOVES = "gains", "loses", "makes no clear difference"


def batches_of(e, measure: str) -> list[int]:
    """The batch sizes at which a measure was taken."""
    names = (name.removeprefix(f"{measure}_batch_") for name in e if name.startswith(f"{measure}_batch_"))
    return sorted(int(name) for name in names if name.isdigit())


def at_each(e, measure: str) -> str:
    return "; ".join(f"{e[f'{measure}_batch_{batch}']} at batch {batch}" for batch in batches_of(e, measure))


def answer(e):
    """The question's answer in three sentences."""
    low = min(e[f"speed/best_speedup_batch_{b}"].low for b in batches_of(e, "speed/best_speedup"))
    worst = e["accuracy/worst_change"]
    is_kept = worst.low >= -inference.KEPT and worst.high <= inference.KEPT
    return f"""\
**A trained network can be run {"several times" if low >= 3 else "less than three times"} as fast without training it again, and it {"names pictures as well as before" if is_kept else "is not shown to name pictures as well as before"}.**
Of the ways that keep its accuracy, the fastest has {at_each(e, "speed/best_speedup")} the speed of plain PyTorch; with nothing but PyTorch it is {at_each(e, "speed/pytorch_speedup")}.
The way that loses most accuracy {page.change(worst, *MOVES)}.
"""


def answers(e):
    """The predictions of the chapter, answered in their order."""
    folded = e.get("steps/norms_folded_at_the_end_batch_1")
    tails = "; ".join(f"{e[f'speed/tail_batch_{b}'].mean:.2f} times at batch {b}" for b in batches_of(e, "speed/tail"))
    return f"""\
1. By {at_each(e, "speed/best_speedup")}; by PyTorch alone {at_each(e, "speed/pytorch_speedup")}.
2. After the other steps folding brings {folded if folded else "what could not be measured here"} at batch 1; alone {at_each(e, "steps/norms_folded_alone")}.
3. The way that loses most, over all test pictures: {e["accuracy/worst_change"]}; it names {e["accuracy/worst_same"]} as the plain network does.
4. Ranges from noise: {_of(e, "ranges from noise")}; from pictures that were not normalised: {_of(e, "ranges from pictures not normalised")}; from eight pictures: {_of(e, "ranges from 8 pictures")}.
5. {tails}.
"""


def _of(e, check: str) -> str:
    return str(e.get(f"accuracy/change_{slug(check)}", "not measured here"))


def practice(e):
    """What to do, when, and what it bought here: a table of situations, each line from the records."""

    def bought(name: str) -> str:
        return at_each(e, name) or "not measured here"

    def kept(way: str) -> str:
        return f"in accuracy it {page.change(e[name], *MOVES)}" if (name := f"accuracy/change_{slug(way)}") in e else ""

    lines = [
        ("a CPU, and a file may be handed to a runtime", "8 bits in OpenVINO or ONNX Runtime",
         f"{bought('speed/best_speedup')}; {kept('OpenVINO, 8 bits') or kept('ONNX Runtime, 8 bits')}"),
        ("PyTorch, and nothing else", "fold the norms, channels last, 16 bits where the CPU has them",
         f"{bought('steps/PyTorch_together')}; {kept('folded, channels-last, bfloat16')}"),
        ("the same, and no first guess may change", "fold the norms, channels last, and stay at 32 bits",
         f"{kept('folded, channels-last')}; the 16 bits alone brought {bought('steps/16_bits_at_the_end')} at the end"),
        ("8 bits", "let additions count in 8 bits too", f"{bought('steps/additions_in_8_bits_at_the_end')}"),
        ("many pictures at a time", "let each core work on a few of its own",
         f"{bought('steps/a_batch_in_parts_at_the_end')}"),
        ("pictures to set the ranges by", "training pictures, prepared as they will be",
         f"not normalised: {_of(e, 'ranges from pictures not normalised')}; noise: {_of(e, 'ranges from noise')}"),
        ("few of them", "a handful may do: look", f"8 pictures: {_of(e, 'ranges from 8 pictures')}"),
        ("a choice of scales", "one for each channel", f"one a layer: {_of(e, 'one scale a layer')}"),
    ]  # fmt: skip
    head = "| you have | what to do | measured here |\n| --- | --- | --- |\n"
    return head + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
