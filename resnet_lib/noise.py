"""Wrong labels: put them in, suspect them, and train in spite of them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def symmetric(labels: Tensor, classes: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A share of the labels changed, each to any other class with equal chance.

    Args:    labels: (N,) int64. share: of all labels, rounded down to a whole number of them.
    Returns: the labels (N,), and which are wrong, (N,) bool.
    Raises:  ValueError where the share is not in 0 … 1, or there is no other class.
    """
    wrong = _drawn(labels, classes, share, generator)
    step = torch.randint(1, classes, labels.shape, generator=generator)
    return torch.where(wrong, (labels + step) % classes, labels), wrong


def class_dependent(labels: Tensor, classes: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A share of the labels changed, all those of a class to the same other class, drawn once.

    The classes are drawn into one circle, and a wrong label names the next on it. Arguments, results and errors as
    `symmetric`. From a share of one half on, the wrong label of a class is as frequent as the right one.
    Source:  Patrini et al. 2017, arXiv:1609.03683, §5. Departs: any class may take any other's place, not a like one.
    """
    wrong = _drawn(labels, classes, share, generator)
    circle = torch.randperm(classes, generator=generator)
    following = torch.empty_like(circle)
    following[circle] = circle.roll(-1)
    return torch.where(wrong, following[labels], labels), wrong


def _drawn(labels: Tensor, classes: int, share: float, generator: torch.Generator) -> Tensor:
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} of wrong labels must lie between 0 and 1")
    if classes < 2:
        raise ValueError(f"classes={classes}: a wrong label needs another class")
    wrong = torch.zeros(len(labels), dtype=torch.bool)
    wrong[torch.randperm(len(labels), generator=generator)[: int(share * len(labels) + 1e-9)]] = True
    return wrong


def held_out(predict: Callable[[Tensor, Tensor], Tensor], count: int, folds: int = 3) -> Tensor:
    """Class probabilities (N, K) of each of `count` pictures by a network that was not trained on it.

    Args: predict: (kept, asked), both (N,) bool → probabilities of the asked by a network trained on the kept.
    """
    part, found = torch.arange(count) % folds, None
    for fold in range(folds):
        asked = part == fold
        probabilities = predict(~asked, asked)
        found = torch.zeros(count, probabilities.shape[1]) if found is None else found
        found[asked] = probabilities
    return found


def confident_learning(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Which labels held-out predictions contradict, (N,) bool; probabilities: (N, K).

    The threshold of a class is the mean confidence in it of the pictures that are labelled so. A picture counts for the
    class of which it is most confident among those above their thresholds; it is a suspect if that is not its label.

    Source:  Northcutt et al. 2021, arXiv:1911.00068, equations (1) and (2). Departs: no noise rates, no rank pruning.
    """
    classes = range(probabilities.shape[1])
    thresholds = torch.stack([probabilities[labels == k, k].mean() for k in classes])
    above = probabilities >= thresholds
    guess = probabilities.where(above, torch.tensor(-1.0)).argmax(1)
    return above.any(1) & (guess != labels)


def belief(probabilities: Tensor, labels: Tensor) -> Tensor:
    """How likely predictions find each picture's label, (N,); probabilities: (N, K)."""
    return probabilities.gather(1, labels[:, None])[:, 0]


def generalised_cross_entropy(logits: Tensor, labels: Tensor, q: float = 0.7) -> Tensor:
    """The mean of (1 − p^q) / q, p the probability of the label: cross-entropy as q → 0, 1 − p at q = 1.

    Args:    logits: (N, K). q: in 0 (excluded) … 1; the larger, the less a label counts that is found unlikely.
    Raises:  ValueError for a q outside.
    Source:  Zhang and Sabuncu 2018, arXiv:1805.07836, equation (6). Departs: no truncation.
    """
    if not 0 < q <= 1:
        raise ValueError(f"q={q} must be above 0 and at most 1")
    return ((1 - (q * F.log_softmax(logits, 1).gather(1, labels[:, None])).exp()) / q).mean()
