"""Wrong labels: so many and no others, found by what held-out predictions say, trained on in spite of them."""

import math

import pytest
import torch
import torch.nn.functional as F

from resnet_lib import noise


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
@pytest.mark.parametrize("make", [noise.symmetric, noise.class_dependent])
def test_a_share_of_the_labels_is_wrong_and_only_those(make, share):
    labels = torch.arange(200) % 5
    made, wrong = make(labels, 5, share, seeded())
    assert wrong.sum() == round(200 * share) and torch.equal(made != labels, wrong)
    assert made.min() >= 0 and made.max() < 5 and torch.equal(labels, torch.arange(200) % 5)


def test_even_noise_spreads_over_all_other_classes_and_noise_by_class_names_one():
    labels = torch.arange(4000) % 4
    for make, targets in ((noise.symmetric, 3), (noise.class_dependent, 1)):
        made, wrong = make(labels, 4, 0.5, seeded(1))
        for k in range(4):
            given = torch.bincount(made[wrong & (labels == k)], minlength=4)
            assert given[k] == 0 and (given > 0).sum() == targets
            assert given.max() < 1.3 * given.sum() / targets
    assert len(made[wrong].unique()) == 4, "a circle: every class is also named for another"


@pytest.mark.parametrize(
    ("share", "classes", "words"), [(1.2, 3, "share=1.2"), (-0.1, 3, "share=-0.1"), (0.1, 1, "classes=1")]
)
def test_noise_that_cannot_be_meant_is_refused(share, classes, words):
    for make in (noise.symmetric, noise.class_dependent):
        with pytest.raises(ValueError, match=words):
            make(torch.zeros(10, dtype=torch.int64), classes, share, seeded())


def test_held_out_predictions_come_from_what_was_not_kept_and_every_picture_gets_its_own():
    asked_of = []

    def predict(kept, asked):
        assert not (kept & asked).any() and (kept | asked).all()
        asked_of.append(asked)
        return torch.stack([asked.nonzero()[:, 0].float(), -asked.nonzero()[:, 0].float()], 1)

    found = noise.held_out(predict, 10, folds=3)
    assert torch.equal(found[:, 0], torch.arange(10).float()) and torch.equal(found[:, 1], -found[:, 0])
    assert torch.equal(sum(asked_of), torch.ones(10, dtype=torch.int64)) and len(asked_of) == 3


def test_confident_learning_suspects_what_another_class_claims_with_more_than_its_usual_confidence():
    probabilities = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6], [0.05, 0.95], [0.55, 0.45]])
    labels = torch.tensor([0, 0, 1, 1, 0, 0])
    # thresholds: class 0 (0.9 + 0.7 + 0.05 + 0.55) / 4 = 0.55, class 1 (0.8 + 0.6) / 2 = 0.7
    suspects = noise.confident_learning(probabilities, labels)
    assert suspects.tolist() == [False, False, False, False, True, False]


def test_a_label_is_no_suspect_where_no_class_is_above_its_threshold():
    probabilities = torch.tensor([[0.8, 0.2], [0.2, 0.8], [0.45, 0.55]])
    labels = torch.tensor([0, 1, 0])  # thresholds 0.625 and 0.8: the third picture is above neither
    assert not noise.confident_learning(probabilities, labels).any()


def test_belief_is_the_probability_of_the_given_label():
    probabilities = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    assert noise.belief(probabilities, torch.tensor([1, 1])).tolist() == pytest.approx([0.1, 0.7])


def test_the_generalised_loss_lies_between_cross_entropy_and_one_minus_the_probability():
    logits, labels = torch.randn(50, 4, generator=seeded()), torch.arange(50) % 4
    p = logits.softmax(1)[torch.arange(50), labels]
    assert noise.generalised_cross_entropy(logits, labels, 1.0).item() == pytest.approx((1 - p).mean().item(), abs=1e-6)
    near_zero = noise.generalised_cross_entropy(logits.double(), labels, 1e-6).item()
    assert near_zero == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-4)
    by_hand = ((1 - p**0.7) / 0.7).mean().item()
    assert noise.generalised_cross_entropy(logits, labels).item() == pytest.approx(by_hand, abs=1e-6)


def test_the_generalised_loss_pulls_less_at_a_label_that_is_found_unlikely():
    def pull(q, logit):
        logits = torch.tensor([[logit, 0.0]], requires_grad=True)
        noise.generalised_cross_entropy(logits, torch.tensor([0]), q).backward()
        return -logits.grad[0, 0].item()

    assert pull(0.7, -6.0) < 0.05 < 0.9 < pull(1e-6, -6.0)
    p = 1 / (1 + math.exp(6))
    assert pull(0.7, -6.0) == pytest.approx(p**0.7 * (1 - p), rel=1e-3)


@pytest.mark.parametrize("q", [0.0, 1.5, -1])
def test_a_q_outside_its_range_is_refused(q):
    with pytest.raises(ValueError, match=f"q={q}"):
        noise.generalised_cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1]), q)
