"""Verdicts as a reader sees them: a claim with what decided it, and a chapter's strip."""

import html
import re
from collections.abc import Sequence
from functools import cache

from resnet_lib import claims, freshness, page, parameters, records
from resnet_lib.paths import project_root

LONG = 2  # tests of a claim that stand open


def stale_reasons(record: records.Record) -> list[str]:
    """Why a published record no longer matches the book: its code, the rules that judge it, its profile's settings."""
    codes = [code for code in (record.code, *(entry["code"] for entry in record.attested)) if code]
    reasons = min((freshness.changed(code) for code in codes), key=len, default=["the code that made it is not here"])
    rules = {test.measure: claims.rule_hash(test) for claim in _claims().values() for test in claim.tests}
    changed = [measure for measure, hashed in record.rules.items() if rules.get(measure, hashed) != hashed]
    reasons += [f"the rule of {measure} was changed after the measurement" for measure in changed]
    return reasons + _other_settings(record)


def _other_settings(record: records.Record) -> list[str]:
    """Settings that the record's profile would give now, where the chapter is at hand, and that differ."""
    now = _profile(record.chapter, record.profile)
    found = []
    for name, value in record.settings.items():
        if name in now and now[name] != "auto" and now[name] != value:
            found.append(f"the profile {record.profile} now has {name}={now[name]!r}, the record {value!r}")
    sizes = {"train_size": record.data.get("train"), "image_size": record.data.get("shape", [0])[-1]}
    for name, value in sizes.items():
        if now.get(name) and now[name] != value:
            found.append(f"the profile {record.profile} now has {name}={now[name]}, the record's data {value}")
    return found


@cache
def _profile(chapter: str, profile: str) -> dict:
    import yaml

    notebook = project_root() / "chapters" / f"{chapter}.ipynb"
    file = project_root() / "profiles" / profile / f"{chapter}.yml"
    if not notebook.is_file() or not (file.is_file() or profile == "smoke"):
        return {}
    defaults = {name: one.default for name, one in parameters.declared_in(notebook).items()}
    return defaults | (yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {})


@cache
def _claims() -> dict[str, claims.Claim]:
    return claims.load()


def of_chapter(chapter: str) -> list[claims.Claim]:
    return [claim for claim in _claims().values() if claim.chapter == chapter]


def experiments_of(claim: claims.Claim) -> set[str]:
    return {test.measure.split("/")[0] for test in claim.tests}


def block(claim: claims.Claim, found: Sequence[records.Record], judge_age: bool = True) -> page.Block:
    """A claim, its verdict by these records, and each rule with what it needs and what was measured.

    Args: judge_age: say where a record no longer matches the book; a run made a moment ago does.
    """
    evidence = claims.evidence(found)
    verdict = claims.judge(claim, evidence)
    strongest = records.strongest(found)
    rows = [
        {
            "when": test.when + ("" if test.role == "main" else f" ({test.role})"),
            "needs": claims.needed(test),
            "found": str(evidence.get(test.measure, "–")),
            "outcome": outcome(test, evidence, strongest),
        }
        for test in claim.tests
    ]
    columns = {"when": "condition", "needs": "needed", "found": "measured", "outcome": "outcome"}
    what = "; ".join(dict.fromkeys(test.what for test in claim.tests))
    used = [r for name, r in strongest.items() if name in experiments_of(claim)]
    stale = sorted({reason for record in used if judge_age for reason in stale_reasons(record)})
    head = page.Block(
        f'<p class="claim" id="{claim.id}">{badge(verdict.word)} {page.inline(claim.claim)} '
        f"<code>{claim.id}</code></p>",
        f"{verdict.word.upper()}: {claim.claim} ({claim.id})",
    )
    table = page.table(rows, columns)
    table = table if len(rows) <= LONG else page.fold(f"The {len(rows)} tests", table)
    parts = [head, page.paragraph(f"{verdict.because}."), table]
    if stale:
        parts.append(page.paragraph(f"**Stale**: {some(stale)}."))
    inside = [page.paragraph(f"{what}.\n\n{places(used)}")]
    inside += [page.paragraph(f"Published: {claim.published}")] if claim.published else []
    return page.stack(*parts, page.fold("What was measured, where, and what others found", *inside))


def some(reasons: Sequence[str], shown: int = 2) -> str:
    """The first of many reasons, and how many more there are."""
    more = len(reasons) - shown
    return ", ".join(reasons[:shown]) + (f", and {more} more" if more > 0 else "")


def outcome(test: claims.Test, evidence: dict, strongest: dict[str, records.Record]) -> str:
    """How a test came out, and whether its rule is younger than the runs that it judges."""
    if test.measure not in evidence:
        return "needs a GPU" if test.gpu else "not measured"
    word = claims.shown(test, evidence[test.measure])
    word = word if word in ("as claimed", "cannot tell") else f"**{word}**"
    made = strongest[test.measure.split("/")[0]].made[0]["date"]
    return word + (f" (rule written on {test.since}, after these runs)" if made < test.since else "")


def style(word: str) -> str:
    """The class of a verdict in the style sheet."""
    return f"verdict-{re.sub(r'[, ]+', '-', word)}"


def badge(word: str) -> str:
    return f'<span class="verdict {style(word)}">{html.escape(word)}</span>'


def strip(chapter: str, found: Sequence[records.Record]) -> page.Block:
    """A chapter's claims, each with its verdict and why, and a link to where it is judged."""
    evidence, items, lines = claims.evidence(found), [], []
    for claim in of_chapter(chapter):
        verdict = claims.judge(claim, evidence)
        link = f'<a href="#{claim.id}" title="{html.escape(verdict.because)}">{page.inline(claim.claim)}</a>'
        items.append(f"<li>{badge(verdict.word)} {link}</li>")
        lines.append(f"- {verdict.word}: {claim.claim} ({claim.id}; {verdict.because})")
    return page.Block(f'<ul class="claims">{"".join(items)}</ul>', "\n".join(lines))


def hardware(record: records.Record) -> str:
    """Where, on what and with which torch a record was made, in one line."""
    data = record.data
    size = f", {data['shape'][2]}×{data['shape'][1]}, {data['train']:,} to train on" if "shape" in data else ""
    machines = " and ".join(dict.fromkeys(records.machine(made["device"]) for made in record.made))
    versions = ", ".join(dict.fromkeys(made["packages"].get("torch", "?") for made in record.made))
    is_dirty = record.profile != "smoke" and any(made.get("dirty") for made in record.made)
    dirty = "; made from uncommitted files" if is_dirty else ""
    shared = "; one split for all seeds" if len(record.seeds) > 1 and "splits" not in data else ""
    lengths = sorted({value for name, value in record.settings.items() if name.endswith("epochs")})
    epochs = f" for {' or '.join(map(str, lengths))} epochs" if lengths else ""
    return f"{machines}; torch {versions}; {data['name']}{size}{epochs}{shared}; profile {record.profile}{dirty}"


def checked(record: records.Record) -> str:
    """Whether the record's cheapest run still came out so when it was last made again."""
    if not record.checked:
        return "not yet made again"
    last = record.checked[-1]
    return f"{'disagrees' if last['why'] else 'agrees'} when made again ({last['date']})"


def places(used: Sequence[records.Record]) -> str:
    """Where and when records were made, in sentences."""
    found = dict.fromkeys(f"{hardware(r)}; {r.made[0]['date']}; {checked(r)}" for r in used)
    return "; ".join(found) or "not yet measured"
