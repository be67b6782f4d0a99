"""The chapter on parallelism: what it measures, and what it says of the strongest records."""

from resnet_lib import page
from resnet_lib.experiments.parallelism.costs import COST_MODEL
from resnet_lib.experiments.parallelism.faults import FAULT
from resnet_lib.experiments.parallelism.kinds import KINDS
from resnet_lib.experiments.parallelism.scaling import SCALING
from resnet_lib.experiments.parallelism.thousands import THOUSANDS
from resnet_lib.experiments.parallelism.traps import BATCH_NORM, CONVOLUTIONS, LAYOUT, UNEVEN

EXPERIMENTS = (KINDS, THOUSANDS, BATCH_NORM, LAYOUT, CONVOLUTIONS, UNEVEN, FAULT, SCALING, COST_MODEL)


def speeds(e) -> str:
    """How much faster two processes were; "" where no quiet machine has measured it yet."""
    names = {"data_speedup": "data", "fixed_batch_speedup": "data, one batch divided"}
    names |= {"sharded_speedup": "sharded", "tensor_speedup": "tensor", "pipeline_speedup": "pipeline"}
    found = [f"{words} {e[f'scaling/{name}']}" for name, words in names.items() if f"scaling/{name}" in e]
    return f"Pictures a second of two processes over those of one: {page.listed(found)}." if found else ""


def megabytes(e, kind: str) -> str:
    """What the busier of two processes sends in a step of experiment 1; "" where that was not counted."""
    name = f"kinds/{kind}_sent"
    return f" ({e[name].mean:.2g} MB in experiment 1)" if name in e else ""


def answer(e):
    """The question's answer in three sentences."""
    return f"""\
**Model parallelism divides the network, data parallelism the pictures: two things, which the survey takes for one.**
Each of PyTorch's engines gives what one process gives, to {e["kinds/difference"].mean:.0e}; a tensor- or pipeline-parallel process holds at most {e["kinds/model_held"].mean:.0%} of the parameters and computes on {e["kinds/model_seen"].mean:.0%} of the pictures, a data-parallel one holds {e["kinds/data_held"].mean:.0%} and computes on {e["kinds/data_seen"].mean:.0%}.
{speeds(e) or "How much faster it is has not been published for this book's machines yet."}
Published runs on up to 3,584 GPUs are {e["thousands/speedup"].mean:.0f} times as fast as on 8, {e["thousands/linear"].mean:.0%} of linear.
"""


def answers(e):
    """The predictions of the chapter, answered in their order."""
    kinds = [kind for kind in ("data", "sharded", "tensor", "pipeline") if f"kinds/{kind}_sent" in e]
    sent = [f"{kind} {e[f'kinds/{kind}_sent'].mean:.3g} MB" for kind in kinds]
    least = min(kinds, key=lambda kind: e[f"kinds/{kind}_sent"].mean, default="")
    said = (
        f"{least}. The busier of two processes sends {page.listed(sent)}, predicted to {e['kinds/sent_error'].mean:.1%}"
    )
    said = said if sent else "not counted here"
    return f"""\
1. {said[0].upper()}{said[1:]}.
2. No: plain batch norm's gradients differ from one process's by {e["batch_norm/plain_gradient"].mean:.0%} of the largest; synchronised they differ by {e["batch_norm/by_hand_gradient"].mean:.0e}.
3. Both: of the layers divided by `DTensor` {e["convolutions/dtensor_right"].mean:.0f} are right and {e["convolutions/dtensor_wrong"].mean:.0f} silently wrong.
4. {speeds(e) or "Not published yet: this page's own run is below."}
5. {e["thousands/linear"].mean:.0%} of linear: {e["thousands/hardware"].mean:.0%} by the hardware times {e["thousands/statistical"].mean:.0%} by the larger batch.
"""


def practice(e):
    """What to do, when, and what it bought here."""
    return f"""\
| your network | your link | take | because |
| --- | --- | --- | --- |
| fits one GPU, and so does a good batch | any | data parallelism (DDP) | it sends the gradients once a step, whatever the batch{megabytes(e, "data")} |
| fits one GPU | slow | the same, with gradients accumulated | one sum for several passes |
| does not fit, but each layer does | fast | sharded (`fully_shard`) | each of two processes stores {e["kinds/sharded_stored"].mean:.0%}, and sends half as much again as DDP (over gloo twice as much) |
| one layer does not fit | very fast, within a server | tensor | it sums maps at every unit{megabytes(e, "tensor")} |
| a stage fits, the whole does not | slow | pipeline | it sends one map at each cut{megabytes(e, "pipeline")} |
| thousands of GPUs | – | data between servers, tensor or pipeline within | and expect {e["thousands/linear"].mean:.0%} of linear, as published |

- **Ask for your own network first**: `python -m resnet_lib.parallel --plan resnet50 --processes 8 --batch 256 --link-gbit 100` says what fits, what is sent and how long a step should take.
- **Synchronise batch norm, or keep the batch of each process large.** Plain, its gradients were {e["batch_norm/plain_gradient"].mean:.0%} of the largest off.
- **Put channels last before DDP wraps the network.** Done after, the first step's gradients were {e["layout/after_copies_first"].mean:.0%} of the largest off, under a warning that calls it no error.
- **Divide convolutions by hand, or by pictures.** `DTensor` was silently wrong in {e["convolutions/dtensor_wrong"].mean:.0f} layers here.
- **Weight uneven batches by their pictures.** A mean of means was {e["uneven/means"].mean:.0%} of a step off, the weighted one {e["uneven/weighted"].mean:.0e}.
- **Save with `torch.distributed.checkpoint` under another name, then rename.** A full disk then costs nothing but that checkpoint.
"""
