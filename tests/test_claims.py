import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from resnet_lib import claims, records
from resnet_lib.stats import Estimate, exact

IDS = re.findall(
    r"\S+",
    """
bg-levers bg-hyper bg-data-quality bg-structure bg-gpu
res-gradient res-info res-easy res-degradation res-sum res-samedim res-family
skip-sizes skip-express skip-capacity skip-gradient skip-generative
aug-robust aug-geometric aug-photometric aug-amount aug-modern down-generalise down-balance prep-normalise
bn-ics bn-faster bn-gradient bn-anywhere bn-eval bn-acceleration
tc-matmul tc-anywhere tc-accuracy tc-cuda-only tc-vector
par-model par-speed
net-block net-formula2 net-two-convs net-channels net-stem net-depth-free net-features
""",
)
CHAPTERS = {
    "residual",
    "skip",
    "resnet",
    "augmentation",
    "downsampling",
    "batch_norm",
    "tensor_cores",
    "parallelism",
    "tuning",
}
LOW, MIDDLE, HIGH = (-3, -2), (-0.5, 0.5), (2, 3)  # intervals below, inside and above ±1


def rule(measure="run/effect", direction="greater", bound=1.0, when="with it"):
    return claims.Test(measure, "with minus without", when, direction, bound, unit="s", confidence=0.95)


def claim(*tests):
    return claims.Claim("an-id", "Section", "It works.", "effect", "residual", tests)


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


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        (HIGH, HIGH, "supported"),
        (LOW, LOW, "refuted"),
        (HIGH, LOW, "qualified"),
        ((0, 2), HIGH, "undecided"),
        ((0, 2), LOW, "undecided"),
        ((0, 2), (0, 2), "undecided"),
        (HIGH, None, "undecided"),
        (LOW, None, "undecided"),
        (None, None, "not yet tested"),
    ],
)
def test_verdicts(first, second, word):
    tests = rule("run/a"), rule("run/b")
    found = {test.measure: between(*span) for test, span in zip(tests, (first, second), strict=True) if span}
    assert claims.judge(claim(*tests), found).word == word
    assert claims.judge(claim(*reversed(tests)), found).word == word
    assert word in claims.WORDS


@pytest.mark.parametrize("third", [HIGH, LOW, (0, 2), None])
def test_holding_once_and_failing_once_is_qualified_whatever_the_rest(third):
    tests = rule("run/a"), rule("run/b"), rule("run/c")
    found = {"run/a": between(*HIGH), "run/b": between(*LOW)} | ({"run/c": between(*third)} if third else {})
    assert claims.judge(claim(*tests), found).word == "qualified"


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
    assert [(c.id, c.section) for c in claims.load().values()] == wanted


def test_every_claim_can_win_and_lose():
    """No rule is empty: some evidence supports each claim, and some refutes it."""
    extremes = {"greater": (1e9, -1e9), "less": (-1e9, 1e9), "within": (0, 1e9), "outside": (1e9, 0)}
    for c in claims.load().values():
        for side, word in enumerate(("supported", "refuted")):
            found = {t.measure: exact(extremes[t.direction][side], t.unit) for t in c.tests}
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
    "tests": [
        {
            "measure": "run/effect",
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
        ([GOOD | {"verdict": "supported"}], "claim an-id: unknown key verdict"),
        ([{k: v for k, v in GOOD.items() if k != "kind"}], "missing key kind"),
        ([GOOD | {"kind": "opinion"}], "kind is 'opinion'; allowed: definition, fact, effect"),
        ([GOOD | {"tests": []}], "no tests"),
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
