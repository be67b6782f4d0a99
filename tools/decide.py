"""Spend minutes on the runs that decide the most: the cheapest main tests that are still open, first.

python -m tools.decide --profile cpu --minutes 60 --set dataset=pictures.tar.xz --set records_to=records

A test that is open gets as many seeds as would decide it, if its mean and its spread stay: the next of the planned
looks. What no number of seeds decides at these settings is named. Finished runs are kept: the next call goes on.
"""

import math
import sys
import time
from dataclasses import dataclass

from tools import measure
from tools.chapters import command, given


@dataclass(frozen=True)
class Open:
    """A main test whose interval lies on both sides of its bound, and what it takes to decide it."""

    chapter: str
    claim: str
    measure: str
    have: int  # seeds
    look: int | None  # seeds at which to look again; None where no planned number of them would decide it
    seconds: float  # of one core, until then


class OutOfTime(Exception):
    pass


def opened(profile: str) -> list[Open]:
    """The main tests that leave a claim open in a profile's records, the cheapest first; those without hope last."""
    from resnet_lib import claims, records, verdicts

    found = []
    for chapter in sorted({record.chapter for record in records.published()}):
        of_chapter = records.published(chapter)
        evidence, strongest = claims.evidence(of_chapter), records.strongest(of_chapter)
        for claim in verdicts.of_chapter(chapter):
            verdict = claims.judge(claim, evidence)
            outcomes = verdict.outcomes
            for test in claim.tests if verdict.word != "no" else ():  # one part that fails is enough
                record = strongest.get(test.measure.split("/")[0])
                if test.role == "main" and outcomes[test.measure] == "undecided" and record.profile == profile:
                    found.append(_open(claim.id, test, evidence[test.measure], record))
    return sorted(found, key=lambda one: (one.look is None, one.seconds))


def _open(claim: str, test, estimate, record) -> Open:
    from resnet_lib import claims, verdicts

    have = len(record.seeds) or estimate.n
    needed = claims.seeds_to_decide(test, estimate)
    looks = [look for look in claims.LOOKS if look > have and needed is not None and look >= needed]
    look = looks[0] if looks else None
    again = 0 if verdicts.stale_reasons(record) else have  # runs of other code or settings do not count
    seconds = record.wall_s / max(1, have) * ((look or claims.LOOKS[-1]) - again)
    return Open(record.chapter, claim, test.measure, have, look, max(0.0, seconds))


def told(one: Open) -> str:
    if one.look is None:
        return f"{one.claim:16} {one.measure}: no planned number of seeds decides it here (n={one.have})"
    return (
        f"{one.claim:16} {one.measure}: from {one.have} to {one.look} seeds, about {one.seconds / 60:.0f} min of a core"
    )


def decide(todo: list[Open], profile: str, settings: list[tuple[str, str]], until: float, jobs: int = 1) -> list[str]:
    """Measure what the tests need, in turn, until the time is up; a line for each says how far it came."""

    def before_run() -> None:
        if time.monotonic() > until:
            raise OutOfTime

    lines, done = [], set()
    for one in todo:
        key = one.chapter, one.measure.split("/")[0], one.look
        if one.look is None or key in done:
            continue
        done.add(key)
        known, values = measure.parameters_of(one.chapter, profile, settings)
        values |= {"seeds": one.look, "resume": True}
        names = [key[1]]
        try:
            before_run()
            measure.measure(one.chapter, names, known, values, jobs, before_run=before_run)
        except OutOfTime:
            return [*lines, f"{one.chapter}/{key[1]}: the minutes are spent; its finished runs are kept"]
        lines.append(f"{one.chapter}/{key[1]}: measured with {one.look} seeds")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = command("tools.decide", __doc__)
    parser.add_argument("--profile", default="cpu", help="whose records and settings (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=0.0, help="0, the default, only says what each test needs")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the runs")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter; may be repeated")
    options = parser.parse_args(arguments)
    if not 0 <= options.minutes < math.inf or options.jobs < 1:
        print(
            f"error: --minutes {options.minutes} must be at least 0, --jobs {options.jobs} at least 1", file=sys.stderr
        )
        return 2
    try:
        settings = given(options.set)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    todo = opened(options.profile)
    print("\n".join(map(told, todo)) or "every main test with a record is decided")
    if options.minutes:
        until = time.monotonic() + 60 * options.minutes
        try:
            print("\n".join(decide(todo, options.profile, settings, until, options.jobs)))
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
