"""The claims on trial: claims.yml and an estimate for each of a claim's tests give its verdict."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from math import isfinite, sqrt
from pathlib import Path

from resnet_lib import records
from resnet_lib.paths import digest, project_root
from resnet_lib.stats import Estimate, quantity, widened

KINDS = ("definition", "fact", "effect")
ROLES = ("main", "limit", "control")
NEEDS = ("all", "any")
WORDS = ("yes", "yes, if", "no", "cannot tell", "not yet tested")
ON_THE_BOUND = 50  # more seeds than these settings will ever get: the effect is as large as the bound
NEVER = 1000  # seeds that are not looked beyond
LOOKS = (3, 6, 12, 24)  # numbers of seeds at which a result may be looked at, and decided
# Confidence of each look's interval, by that of the rule: so four looks decide wrongly as rarely as one at the rule's
# own. One level for all looks: Pocock 1977, doi:10.1093/biomet/64.2.191; simulated for t intervals in the tests.
AT_EACH_LOOK = {0.95: 0.986}
# how a rule reads; the bound goes in the braces
DIRECTIONS = {"greater": "at least {}", "less": "at most {}", "within": "within ±{}", "outside": "beyond ±{}"}


@dataclass(frozen=True)
class Test:
    """One rule: under one condition, the claim holds if the interval lies where direction and bound say."""

    measure: str  # experiment/estimate, as the claim's chapter records it
    role: str  # "main" decides, "limit" only narrows a yes, "control" must hold or nothing is decided
    what: str  # what the measure is, in words, with the sign spelt out
    when: str  # the condition; reads after "yes" or "not"
    direction: str  # one of DIRECTIONS
    bound: float  # in `unit`: the smallest effect that matters, chosen before the run
    unit: str
    confidence: float  # of the two-sided interval
    since: str  # the day on which the rule was written or last changed
    gpu: bool = False  # only a GPU can measure it

    def __post_init__(self):
        if not re.fullmatch(r"\w+/\w+", str(self.measure)):
            raise ValueError(f"measure is {self.measure!r}; it must be experiment/estimate")
        if self.role not in ROLES:
            raise ValueError(f"role of {self.measure} is {self.role!r}; allowed: {', '.join(ROLES)}")
        if not re.fullmatch(r"20\d\d-\d\d-\d\d", str(self.since)):
            raise ValueError(f"since of {self.measure} is {self.since!r}; it must be a day in quotes, '2026-11-27'")
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
    needs: str  # "all": it says that every main test holds; "any": each main test is a condition of its own
    tests: tuple[Test, ...]
    published: str = ""  # what the literature reports, with its source, and why ours differs where it does

    def __post_init__(self):
        if self.needs not in NEEDS:
            raise ValueError(f"needs is {self.needs!r}; allowed: {', '.join(NEEDS)}")
        for name in ("id", "section", "claim", "chapter"):
            if not (isinstance(getattr(self, name), str) and getattr(self, name).strip()):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be words")
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; allowed: {', '.join(KINDS)}")
        if not any(test.role == "main" for test in self.tests):
            raise ValueError("no test of role main; a claim needs at least one, which decides")
        measures = [test.measure for test in self.tests]
        if twice := sorted({measure for measure in measures if measures.count(measure) > 1}):
            raise ValueError(f"measure {twice[0]} stands in two tests; one claim uses a measure once")


@dataclass(frozen=True)
class Verdict:
    word: str  # one of WORDS
    because: str  # why, in words: the conditions under which it holds and those under which not, or what is missing
    outcomes: dict[str, str]  # measure → holds, fails, undecided or not tested


def rule_hash(test: Test) -> str:
    """What decides an outcome beside the estimate; a record keeps it, so that a rule changed later is seen."""
    return digest([test.measure, test.direction, test.bound, test.unit, test.confidence])


def needed(test: Test) -> str:
    """What a rule asks of the whole interval, in words."""
    return DIRECTIONS[test.direction].format(quantity(test.bound, test.unit))


def outcome(test: Test, estimate: Estimate) -> str:
    """Whether the whole interval of a look satisfies the rule ("holds"), violates it ("fails") or neither.

    A control decides nothing of what is asked, so it is judged by the interval as it is.
    Raises: ValueError if the estimate, unless it is exact, has another confidence, or if it has another unit.
    """
    if estimate.method != "exact" and estimate.confidence != test.confidence:
        raise ValueError(
            f"{test.measure}: the interval has confidence {estimate.confidence}, the rule {test.confidence}"
        )
    if estimate.unit and estimate.unit != test.unit:
        raise ValueError(f"{test.measure}: the estimate is in {estimate.unit!r}, the rule in {test.unit!r}")
    estimate, bound = (estimate if test.role == "control" else look(estimate)), test.bound
    low, high = estimate.low, estimate.high
    holds, fails = {
        "greater": (low >= bound, high < bound),
        "less": (high <= bound, low > bound),
        "within": (-bound <= low and high <= bound, high < -bound or low > bound),
        "outside": (high <= -bound or low >= bound, -bound < low and high < bound),
    }[test.direction]
    return "holds" if holds else "fails" if fails else "undecided"


def look(estimate: Estimate) -> Estimate:
    """The estimate with the interval that decides: wider than the one shown, since results are looked at repeatedly."""
    return widened(estimate, AT_EACH_LOOK.get(estimate.confidence, estimate.confidence))


def no_effect(test: Test) -> float:
    """The value of a test's measure where there is no effect: a ratio of one, a difference of zero."""
    return 1.0 if test.unit == "times" else 0.0


def shown(test: Test, estimate: Estimate) -> str:
    """How a test came out, in words that tell an effect too small from none and from its opposite."""
    result = outcome(test, estimate)
    if result != "fails":
        return {"holds": "as claimed", "undecided": "cannot tell"}[result]
    if estimate.method == "exact" or test.direction in ("within", "outside") or not test.bound:
        return "not so"
    if (test.bound > 0) != (test.direction == "greater"):  # the rule allows a loss: whatever fails it is a loss
        return "not so"
    estimate = look(estimate)
    start = no_effect(test)
    sign = 1 if test.direction == "greater" else -1
    low, high = sorted((sign * (estimate.low - start), sign * (estimate.high - start)))
    margin = sign * (test.bound - start)
    if low > 0:
        return "too small to matter"
    if high < 0:
        return "the opposite"
    return "no difference" if low > -margin else "not so"


def seeds_to_decide(test: Test, estimate: Estimate) -> int | None:
    """About how many values would put the interval to one side of the bound, if mean and spread stay; None if never."""
    from scipy.stats import t

    bounds = [test.bound] if test.direction in ("greater", "less") else [test.bound, -test.bound]
    distance = min(abs(estimate.mean - bound) for bound in bounds)
    wide = look(estimate)
    end = (1 + wide.confidence) / 2
    spread = (wide.high - wide.low) / 2 * sqrt(estimate.n) / t.ppf(end, estimate.n - 1)
    enough = (n for n in range(2, NEVER) if t.ppf(end, n - 1) * spread / sqrt(n) < distance)
    return next(enough, None) if distance else None


def judge(claim: Claim, estimates: Mapping[str, Estimate]) -> Verdict:
    """The verdict on a claim from the estimates at hand, by measure; other claims' measures are ignored.

    Main tests decide. Where the claim needs all of them, one that fails makes it false as stated; else each is a
    condition, and one that holds makes it true under that condition. A limit that fails narrows a yes and changes
    nothing else. A control that does not hold means that the regime was not reached: nothing is decided.
    """
    outcomes = {
        test.measure: outcome(test, estimates[test.measure]) if test.measure in estimates else "not tested"
        for test in claim.tests
    }
    if set(outcomes.values()) == {"not tested"}:
        only = all(test.gpu for test in claim.tests if test.role == "main")
        return Verdict("not yet tested", "it needs a GPU" if only else "no record yet", outcomes)

    def conditions(role: str, *results: str) -> list[Test]:
        return [test for test in claim.tests if test.role == role and outcomes[test.measure] in results]

    if broken := conditions("control", "fails", "undecided"):
        return Verdict("cannot tell", f"The regime was not reached: not shown {_words(broken)}", outcomes)
    if unknown := conditions("control", "not tested"):
        return Verdict("cannot tell", f"Not measured: {_words(unknown)}", outcomes)
    holds, fails, opened = (conditions("main", *r) for r in (("holds",), ("fails",), ("undecided", "not tested")))
    if fails and (claim.needs == "all" or not (holds or opened)):
        return Verdict("no", _because(holds, fails, [] if claim.needs == "all" else opened, estimates), outcomes)
    if holds and not (fails or opened):
        narrowed = conditions("limit", "fails")
        return Verdict("yes, if" if narrowed else "yes", _because(holds, narrowed, [], estimates), outcomes)
    if holds and claim.needs == "any":
        fails += conditions("limit", "fails")
        return Verdict("yes, if", _because(holds, fails, opened, estimates), outcomes)
    return Verdict("cannot tell", _because(holds, fails, opened, estimates), outcomes)


def _words(tests: Iterable[Test]) -> str:
    return "; ".join(test.when for test in tests)


def _because(holds: list[Test], fails: list[Test], opened: list[Test], estimates: Mapping[str, Estimate]) -> str:
    parts = [f"yes {_words(holds)}"] if holds else []
    parts += [f"not {_words(fails)}"] if fails else []
    parts += [f"open {test.when} ({_missing(test, estimates.get(test.measure))})" for test in opened]
    return ". ".join(part[0].upper() + part[1:] for part in parts)


def _missing(test: Test, estimate: Estimate | None) -> str:
    """What a test that is open lacks."""
    if estimate is None:
        return "needs a GPU" if test.gpu else "not measured"
    needed = seeds_to_decide(test, estimate)
    if needed is None or needed > ON_THE_BOUND:
        return "it lies on the bound"
    return f"too few runs: {estimate.n}, and about {max(needed, estimate.n + 1)} would decide"


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
    optional = {field.name for field in fields(kind) if field.default is not MISSING}
    if not isinstance(entry, dict):
        raise ValueError(f"{entry!r} is no mapping; needed keys: {', '.join(keys)}")
    for problem, names in (("unknown", set(entry) - set(keys)), ("missing", set(keys) - optional - set(entry))):
        if names:
            raise ValueError(
                f"{problem} key {', '.join(sorted(map(str, names)))}; a {kind.__name__.lower()} has {', '.join(keys)}"
            )
    return entry
