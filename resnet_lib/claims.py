"""The claims on trial: claims.yml and an estimate for each of a claim's tests give its verdict."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path

from resnet_lib import records
from resnet_lib.paths import digest, project_root
from resnet_lib.stats import Estimate, quantity

KINDS = ("definition", "fact", "effect")
WORDS = ("supported", "refuted", "qualified", "undecided", "not yet tested")
# how a rule reads; the bound goes in the braces
DIRECTIONS = {"greater": "at least {}", "less": "at most {}", "within": "within ±{}", "outside": "beyond ±{}"}


@dataclass(frozen=True)
class Test:
    """One rule: under one condition, the claim holds if the interval lies where direction and bound say."""

    measure: str  # experiment/estimate, as the claim's chapter records it
    what: str  # what the measure is, in words, with the sign spelt out
    when: str  # the condition; reads after "holds" or "does not hold"
    direction: str  # one of DIRECTIONS
    bound: float  # in `unit`: the smallest effect that matters, chosen before the run
    unit: str
    confidence: float  # of the two-sided interval

    def __post_init__(self):
        if not re.fullmatch(r"\w+/\w+", str(self.measure)):
            raise ValueError(f"measure is {self.measure!r}; it must be experiment/estimate")
        for name in ("what", "when"):
            if not (isinstance(getattr(self, name), str) and getattr(self, name).strip()):
                raise ValueError(f"{name} of {self.measure} is {getattr(self, name)!r}; it must be words")
        if not isinstance(self.unit, str):
            raise ValueError(f"unit of {self.measure} is {self.unit!r}; it must be a word, or '' for none")
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction of {self.measure} is {self.direction!r}; allowed: {', '.join(DIRECTIONS)}")
        if type(self.bound) not in (int, float) or not isfinite(self.bound):
            raise ValueError(f"bound of {self.measure} is {self.bound!r}; it must be a finite number")
        if self.direction in ("within", "outside") and self.bound <= 0:
            raise ValueError(f"bound of {self.measure} is {self.bound}; {self.direction!r} needs one > 0")
        if type(self.confidence) is not float or not 0 < self.confidence < 1:
            raise ValueError(f"confidence of {self.measure} is {self.confidence!r}; it must be between 0 and 1")


@dataclass(frozen=True)
class Claim:
    id: str
    section: str
    claim: str  # one sentence
    kind: str  # one of KINDS
    chapter: str  # the notebook that tests it
    tests: tuple[Test, ...]  # the claim is their conjunction

    def __post_init__(self):
        for name in ("id", "section", "claim", "chapter"):
            if not (isinstance(getattr(self, name), str) and getattr(self, name).strip()):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be words")
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; allowed: {', '.join(KINDS)}")
        if not self.tests:
            raise ValueError("no tests; a claim needs at least one")
        measures = [test.measure for test in self.tests]
        if twice := sorted({measure for measure in measures if measures.count(measure) > 1}):
            raise ValueError(f"measure {twice[0]} stands in two tests; one claim uses a measure once")


@dataclass(frozen=True)
class Verdict:
    word: str  # one of WORDS
    outcomes: dict[str, str]  # measure → holds, fails, undecided or not tested


def rule_hash(test: Test) -> str:
    """What decides an outcome beside the estimate; a record keeps it, so that a rule changed later is seen."""
    return digest([test.measure, test.direction, test.bound, test.unit, test.confidence])


def needed(test: Test) -> str:
    """What a rule asks of the whole interval, in words."""
    return DIRECTIONS[test.direction].format(quantity(test.bound, test.unit))


def outcome(test: Test, estimate: Estimate) -> str:
    """Whether the whole interval satisfies the rule ("holds"), violates it ("fails") or neither.

    Raises: ValueError if the estimate, unless it is exact, has another confidence, or if it has another unit.
    """
    if estimate.method != "exact" and estimate.confidence != test.confidence:
        raise ValueError(
            f"{test.measure}: the interval has confidence {estimate.confidence}, the rule {test.confidence}"
        )
    if estimate.unit and estimate.unit != test.unit:
        raise ValueError(f"{test.measure}: the estimate is in {estimate.unit!r}, the rule in {test.unit!r}")
    low, high, bound = estimate.low, estimate.high, test.bound
    holds, fails = {
        "greater": (low >= bound, high < bound),
        "less": (high <= bound, low > bound),
        "within": (-bound <= low and high <= bound, high < -bound or low > bound),
        "outside": (high <= -bound or low >= bound, -bound < low and high < bound),
    }[test.direction]
    return "holds" if holds else "fails" if fails else "undecided"


def judge(claim: Claim, estimates: Mapping[str, Estimate]) -> Verdict:
    """The verdict on a claim from the estimates at hand, by measure; other claims' measures are ignored.

    One test that holds and one that fails make it qualified whatever the others say: no further evidence
    could make it supported or refuted. Otherwise a missing or undecided test leaves the claim undecided.
    """
    outcomes = {
        test.measure: outcome(test, estimates[test.measure]) if test.measure in estimates else "not tested"
        for test in claim.tests
    }
    found = set(outcomes.values())
    word = (
        "not yet tested"
        if found == {"not tested"}
        else "supported"
        if found == {"holds"}
        else "refuted"
        if found == {"fails"}
        else "qualified"
        if {"holds", "fails"} <= found
        else "undecided"
    )
    return Verdict(word, outcomes)


def evidence(found: Iterable[records.Record]) -> dict[str, Estimate]:
    """The estimates in one chapter's records, by measure; of two records of an experiment the first counts.

    Raises: ValueError for records of several chapters, whose measures may share names.
    """
    first = {}
    for record in found:
        first.setdefault((record.chapter, record.experiment), record)
    if len(chapters := sorted({chapter for chapter, _ in first})) > 1:
        raise ValueError(f"records of the chapters {', '.join(chapters)}; measures belong to one chapter")
    return {
        f"{experiment}/{name}": Estimate(**estimate)
        for (_, experiment), record in first.items()
        for name, estimate in record.estimates.items()
    }


def load(path: str | Path | None = None) -> dict[str, Claim]:
    """The claims by id, in the file's order; by default the project's own claims.yml.

    Raises: ValueError naming file, claim and rule: duplicate id, unknown or missing key, bad value.
    """
    import yaml

    path = Path(path) if path is not None else project_root() / "claims.yml"
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(entries, list):
        raise ValueError(f"{path} holds a {type(entries).__name__}; it must be a list of claims")
    claims = {}
    for position, entry in enumerate(entries, start=1):
        try:
            entry = _checked(entry, Claim)
            if not isinstance(entry["tests"], list):
                raise ValueError(f"tests is {entry['tests']!r}; it must be a list")
            claim = Claim(**entry | {"tests": tuple(Test(**_checked(test, Test)) for test in entry["tests"])})
            if claim.id in claims:
                raise ValueError("the id stands twice")
        except ValueError as error:
            name = entry.get("id") if isinstance(entry, dict) else None
            raise ValueError(f"{path}, claim {name or position}: {error}") from None
        claims[claim.id] = claim
    return claims


def _checked(entry: object, kind: type) -> dict:
    keys = [field.name for field in fields(kind)]
    if not isinstance(entry, dict):
        raise ValueError(f"{entry!r} is no mapping; needed keys: {', '.join(keys)}")
    for problem, names in (("unknown", set(entry) - set(keys)), ("missing", set(keys) - set(entry))):
        if names:
            raise ValueError(
                f"{problem} key {', '.join(sorted(map(str, names)))}; "
                f"a {kind.__name__.lower()} has exactly {', '.join(keys)}"
            )
    return entry
