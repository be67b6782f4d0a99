import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import yaml

from resnet_lib import claims, records
from resnet_lib.stats import Estimate, exact

IDS = re.findall(
    r"\S+",
    """
bg-levers bg-hyper bg-data-quality bg-structure bg-gpu
res-gradient res-info res-easy res-degradation res-sum res-samedim res-family
fam-structure fam-flops-not-speed
skip-sizes skip-express skip-capacity skip-gradient skip-generative
aug-robust aug-geometric aug-photometric aug-amount aug-modern down-generalise down-balance prep-normalise
bn-ics bn-faster bn-gradient bn-anywhere bn-eval bn-acceleration
tc-matmul tc-anywhere tc-accuracy tc-cuda-only tc-vector
inf-free
par-model par-speed
net-block net-formula2 net-two-convs net-channels net-stem net-depth-free net-features
""",
)
CHAPTERS = {
    "residual",
    "families",
    "skip",
    "resnet",
    "augmentation",
    "downsampling",
    "batch_norm",
    "tensor_cores",
    "inference",
    "parallelism",
    "tuning",
}
LOW, MIDDLE, HIGH = (-3, -2), (-0.5, 0.5), (2, 3)  # intervals below, inside and above ±1


def rule(measure="run/effect", direction="greater", bound=1.0, when="with it", role="main", **changes):
    usual = {"unit": "s", "confidence": 0.95, "since": "2026-11-01"}
    return claims.Test(measure, role, "with minus without", when, direction, bound, **usual | changes)


def claim(*tests, needs="any"):
    return claims.Claim("an-id", "Section", "It works.", "effect", "residual", needs, tests)


def judged(needs="any", **spans):
    """The verdict where each role has a test with an interval, by the role's name and a number: main1=HIGH."""
    tests = [rule(f"run/{name}", role=name[:-1], when=f"with {name}") for name in spans]
    found = {f"run/{name}": between(*span) for name, span in spans.items() if span}
    both = [claims.judge(claim(*order, needs=needs), found) for order in (tests, tests[::-1])]
    assert both[0].word == both[1].word in claims.WORDS
    return both[0]


LEVELS = dict(claims.AT_EACH_LOOK)


@pytest.fixture(autouse=True)
def one_look(monkeypatch):
    """Most tests here speak of the interval that decides, so it is the one that they give."""
    monkeypatch.setattr(claims, "AT_EACH_LOOK", {})


@pytest.fixture
def looks(one_look, monkeypatch):
    monkeypatch.setattr(claims, "AT_EACH_LOOK", LEVELS)


def between(low, high, **changes):
    usual = {"n": 5, "confidence": 0.95, "sd": 1.0, "method": "t", "unit": "s"}
    return Estimate((low + high) / 2, low, high, **usual | changes)


@pytest.mark.parametrize(
    ("direction", "holds", "fails", "undecided"),
    [
        ("greater", [HIGH, (1, 2)], [LOW, MIDDLE], [(0, 2), (-2, 1)]),
        ("less", [LOW, MIDDLE, (0, 1)], [HIGH], [(0, 2), (1, 2)]),
        ("within", [MIDDLE, (-1, 1)], [LOW, HIGH], [(0, 2), (-2, 0), (-2, 2), (1, 2)]),
        ("outside", [LOW, HIGH, (1, 2), (-2, -1)], [MIDDLE], [(0, 2), (-2, 0), (-2, 2), (0, 1)]),
    ],
)
def test_a_rule_is_decided_only_by_a_whole_interval(direction, holds, fails, undecided):
    for expected, intervals in (("holds", holds), ("fails", fails), ("undecided", undecided)):
        for low, high in intervals:
            assert claims.outcome(rule(direction=direction), between(low, high)) == expected, (low, high)


def test_an_exact_count_on_the_bound_holds():
    assert claims.outcome(rule(direction="less", bound=0), exact(0)) == "holds"
    assert claims.outcome(rule(direction="less", bound=0), exact(1)) == "fails"
    assert claims.outcome(rule(direction="greater", bound=1), exact(1)) == "holds"


def test_an_estimate_of_another_confidence_or_unit_is_refused():
    with pytest.raises(ValueError, match="run/effect: the interval has confidence 0.9, the rule 0.95"):
        claims.outcome(rule(), between(2, 3, confidence=0.9))
    with pytest.raises(ValueError, match="run/effect: the estimate is in 'ms', the rule in 's'"):
        claims.outcome(rule(), between(2, 3, unit="ms"))


OPEN = (0, 2)


@pytest.mark.parametrize(
    ("first", "second", "any_word", "all_word"),
    [
        (HIGH, HIGH, "yes", "yes"),
        (LOW, LOW, "no", "no"),
        (HIGH, LOW, "yes, if", "no"),
        (OPEN, HIGH, "yes, if", "cannot tell"),
        (OPEN, LOW, "cannot tell", "no"),
        (OPEN, OPEN, "cannot tell", "cannot tell"),
        (HIGH, None, "yes, if", "cannot tell"),
        (LOW, None, "cannot tell", "no"),
        (None, None, "not yet tested", "not yet tested"),
    ],
)
def test_main_tests_are_conditions_or_parts_of_a_claim(first, second, any_word, all_word):
    assert judged("any", main1=first, main2=second).word == any_word
    assert judged("all", main1=first, main2=second).word == all_word


@pytest.mark.parametrize("third", [HIGH, LOW, OPEN, None])
def test_a_limit_only_narrows_a_yes(third):
    assert judged(main1=HIGH, limit1=third).word == ("yes, if" if third == LOW else "yes")
    assert judged(main1=LOW, limit1=third).word == "no"
    assert judged(main1=OPEN, limit1=third).word == "cannot tell"


@pytest.mark.parametrize("control", [LOW, OPEN, None])
@pytest.mark.parametrize("main", [HIGH, LOW, OPEN])
def test_nothing_is_decided_where_a_control_does_not_hold(main, control):
    found = judged(main1=main, control1=control)
    assert found.word == "cannot tell" and found.because.endswith("with control1")
    assert found.because.startswith("Not measured" if control is None else "The regime was not reached")
    assert judged(main1=main, control1=HIGH).word == judged(main1=main).word


def test_a_verdict_says_under_which_conditions_and_what_is_open():
    assert (
        judged(main1=HIGH, main2=LOW, main3=None).because
        == "Yes with main1. Not with main2. Open with main3 (not measured)"
    )
    assert judged("all", main1=HIGH, main2=LOW, main3=None).because == "Yes with main1. Not with main2"
    assert judged(main1=HIGH, limit1=LOW).because == "Yes with main1. Not with limit1"
    gpu = claim(rule("run/a", gpu=True), rule("run/b"))
    assert claims.judge(gpu, {"run/b": between(*HIGH)}).because == "Yes with it. Open with it (needs a GPU)"
    assert claims.judge(claim(rule("run/a", gpu=True)), {}).because == "it needs a GPU"


def test_an_open_test_says_about_how_many_runs_would_decide_it():
    # half-width 1 at n = 5, mean 0.5 below the bound: the spread is 1 · √5 / t₄, and t₁₂ of it / √13 is 0.49
    assert claims.seeds_to_decide(rule(), between(-0.5, 1.5)) == 13
    assert claims.seeds_to_decide(rule(direction="within"), between(-2.5, -0.5)) == 13  # of the nearer bound
    assert claims.seeds_to_decide(rule(), between(0, 2)) is None
    said = lambda low, high: claims.judge(claim(rule()), {"run/effect": between(low, high)}).because  # noqa: E731
    assert said(-0.5, 1.5) == "Open with it (too few runs: 5, and about 13 would decide)"
    assert said(0.05, 1.95) == said(0.2, 2.0) == "Open with it (it lies on the bound)"


def test_a_look_decides_by_a_wider_interval_than_the_one_shown(looks):
    shown = between(1.0, 3.0, n=3)
    level = claims.look(shown)
    assert level.confidence == LEVELS[0.95] and level.mean == shown.mean
    assert claims.outcome(rule(), shown) == "undecided" and claims.outcome(rule(bound=level.low), shown) == "holds"
    assert claims.shown(rule(direction="less", bound=0.99), shown) == "cannot tell"
    assert claims.outcome(replace(rule(), role="control"), shown) == "holds", "a control decides nothing"
    assert claims.look(exact(1.0, "s")) == exact(1.0, "s")


def test_four_looks_decide_wrongly_no_more_often_than_a_rule_says(looks):
    """An effect on the bound, 200,000 times: at each look what is still open may be decided, half of it wrongly."""
    (rules_own,), (level,) = LEVELS, LEVELS.values()
    values = np.random.default_rng(0).standard_normal((200_000, claims.LOOKS[-1]))
    wrong = {}
    for confidence in (rules_own, level):
        is_open, wrong[confidence] = np.ones(len(values), bool), 0.0
        for n in claims.LOOKS:
            mean, sd = values[:, :n].mean(1), values[:, :n].std(1, ddof=1)
            arm = scipy.stats.t.ppf((1 + confidence) / 2, n - 1) * sd / n**0.5
            wrong[confidence] += (is_open & (mean - arm > 0)).mean()
            is_open &= abs(mean) <= arm
    assert wrong[level] <= (1 - rules_own) / 2 < 0.07 < wrong[rules_own]


@pytest.mark.parametrize(
    ("direction", "bound", "span", "word"),
    [
        ("greater", 1.0, (1, 2), "as claimed"),
        ("greater", 1.0, (0.2, 0.8), "too small to matter"),
        ("greater", 1.0, (-0.5, 0.5), "no difference"),
        ("greater", 1.0, (-3, 0.5), "not so"),  # no gain, and perhaps a loss that matters
        ("greater", 1.0, (-3, -0.1), "the opposite"),
        ("greater", 1.0, (0.5, 1.5), "cannot tell"),
        ("less", -1.0, (-0.8, -0.2), "too small to matter"),
        ("less", -1.0, (0.1, 3), "the opposite"),
        ("less", 1.0, (2, 3), "not so"),  # the rule allows a loss of up to 1
        ("within", 1.0, (2, 3), "not so"),
    ],
)
def test_how_a_test_came_out_tells_small_from_none_from_opposite(direction, bound, span, word):
    assert claims.shown(rule(direction=direction, bound=bound), between(*span)) == word


def test_a_ratio_of_one_is_no_effect():
    times = lambda low, high: claims.shown(rule(bound=1.5, unit="times"), between(low, high, unit="times"))  # noqa: E731
    assert times(1.1, 1.3) == "too small to matter"
    assert times(0.8, 1.2) == "no difference"
    assert times(0.6, 0.9) == "the opposite"


def test_what_a_rule_needs_is_said_with_its_unit_as_a_reader_sees_it():
    assert claims.needed(rule("run/a")) == "at least 1 s"
    assert claims.needed(replace(rule("run/a"), direction="within", bound=0.02, unit="accuracy")) == "within ±2 points"


def test_a_rules_hash_changes_with_what_decides_and_with_nothing_else():
    one = rule("run/a")
    assert claims.rule_hash(one) == claims.rule_hash(replace(one, when="otherwise", what="other words"))
    for change in ({"bound": 2.0}, {"direction": "less"}, {"confidence": 0.9}, {"unit": "ms"}):
        assert claims.rule_hash(one) != claims.rule_hash(replace(one, **change))


def test_the_first_record_of_an_experiment_counts_alone():
    """Not measure by measure: one verdict must not mix two profiles of an experiment."""
    full = SimpleNamespace(chapter="residual", experiment="run", estimates={"a": exact(1).as_dict()})
    two = exact(2).as_dict()
    smoke = SimpleNamespace(chapter="residual", experiment="run", estimates={"a": two, "b": two})
    assert claims.evidence([full, smoke]) == {"run/a": exact(1)}
    with pytest.raises(ValueError, match="residual, skip"):
        claims.evidence([full, SimpleNamespace(chapter="skip", experiment="run", estimates={})])


def test_every_claim_is_there_in_order_section_by_section():
    found = claims.load()
    assert list(found) == IDS
    sections = [c.section for c in found.values()]
    assert sections == sorted(sections, key=list(dict.fromkeys(sections)).index)
    assert {c.chapter for c in found.values()} == CHAPTERS
    assert len({c.claim for c in found.values()}) == len(IDS)


@pytest.mark.skipif(not os.environ.get("BOOK_CLAIMS"), reason="BOOK_CLAIMS names no list to compare with")
def test_claims_are_those_of_the_given_list():
    wanted, section = [], None
    for line in Path(os.environ["BOOK_CLAIMS"]).read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif row := re.match(r"\| ([a-z0-9]+-[a-z0-9-]+) \|", line):
            wanted.append((row[1], section))
    survey = [c for c in claims.load().values() if not c.section.endswith("(the book's own)")]
    assert [(c.id, c.section) for c in survey] == wanted


def test_every_claim_can_win_and_lose():
    """No rule is empty: where its controls hold, some evidence makes each claim true, and some makes it false."""
    extremes = {"greater": (1e9, -1e9), "less": (-1e9, 1e9), "within": (0, 1e9), "outside": (1e9, 0)}
    for c in claims.load().values():
        for side, word in enumerate(("yes", "no")):
            sides = {t.measure: 0 if t.role == "control" else side for t in c.tests}
            found = {t.measure: exact(extremes[t.direction][sides[t.measure]], t.unit) for t in c.tests}
            assert claims.judge(c, found).word == word, c.id


def test_every_rule_reads_well():
    for c in claims.load().values():
        assert c.claim.endswith(".") and c.claim[0].isupper(), c.id
        assert len({t.when for t in c.tests}) == len(c.tests), f"{c.id}: two tests under one condition"
        for t in c.tests:
            assert re.match(r"(for|in|with|without|against) ", t.when) and not t.when.endswith("."), t.when
            assert t.confidence == 0.95
            assert "/" in t.measure and t.measure == t.measure.lower()


def test_no_measure_means_two_things():
    meaning = {}
    for c in claims.load().values():
        for t in c.tests:
            assert meaning.setdefault((c.chapter, t.measure), (t.what, t.unit)) == (t.what, t.unit), t.measure


def test_claims_lie_beside_the_project(tmp_path):
    assert claims.load() == claims.load(records.project_root() / "claims.yml")
    with pytest.raises(FileNotFoundError):
        claims.load(tmp_path / "none.yml")


GOOD = {
    "id": "an-id",
    "section": "S",
    "claim": "C.",
    "kind": "fact",
    "chapter": "residual",
    "needs": "all",
    "tests": [
        {
            "measure": "run/effect",
            "role": "main",
            "since": "2026-11-01",
            "what": "w",
            "when": "for it",
            "direction": "less",
            "bound": 1,
            "unit": "",
            "confidence": 0.95,
        }
    ],
}


def changed(**changes):
    return [GOOD | {"tests": [GOOD["tests"][0] | changes]}]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([GOOD, GOOD], "claim an-id: the id stands twice"),
        ([GOOD | {"id": 5}], "id is 5"),
        ([GOOD | {"claim": ""}], "claim is ''"),
        ([GOOD | {"verdict": "yes"}], "claim an-id: unknown key verdict"),
        ([{k: v for k, v in GOOD.items() if k != "kind"}], "missing key kind"),
        ([GOOD | {"kind": "opinion"}], "kind is 'opinion'; allowed: definition, fact, effect"),
        ([GOOD | {"tests": []}], "no test of role main"),
        (changed(role="limit"), "no test of role main"),
        ([GOOD | {"needs": "most"}], "needs is 'most'; allowed: all, any"),
        (changed(role="side"), "role of run/effect is 'side'; allowed: main, limit, control"),
        (changed(since="today"), "since of run/effect is 'today'"),
        ([GOOD | {"tests": "run/effect"}], "it must be a list"),
        ([GOOD | {"tests": GOOD["tests"] * 2}], "run/effect stands in two tests"),
        (["an-id"], "claim 1: 'an-id' is no mapping"),
        ({"an-id": GOOD}, "holds a dict; it must be a list"),
        (changed(treshold=1), "unknown key treshold"),
        (changed(direction="more"), "direction of run/effect is 'more'; allowed: greater, less, within, outside"),
        (changed(bound="1"), "bound of run/effect is '1'"),
        (changed(bound=True), "bound of run/effect is True"),
        (changed(bound=float("nan")), "bound of run/effect is nan"),
        (changed(direction="within", bound=0), "'within' needs one > 0"),
        (changed(confidence=95), "confidence of run/effect is 95"),
        (changed(measure="effect"), "measure is 'effect'; it must be experiment/estimate"),
        (changed(when=" "), "when of run/effect is ' '"),
        (changed(unit=None), "unit of run/effect is None"),
    ],
)
def test_a_malformed_file_is_refused_with_the_reason(tmp_path, entries, message):
    path = tmp_path / "claims.yml"
    path.write_text(yaml.safe_dump(entries))
    with pytest.raises(ValueError, match=re.escape(message)):
        claims.load(path)


def test_a_well_formed_file_is_read(tmp_path):
    path = tmp_path / "claims.yml"
    path.write_text(yaml.safe_dump([GOOD]))
    assert claims.load(path)["an-id"].tests[0].bound == 1
