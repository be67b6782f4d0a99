"""The ledger: every claim with its verdict, from the published records, on one page."""

import html
import re
from collections.abc import Iterator, Sequence

from resnet_lib import claims, page, records, stats, verdicts


def _judged() -> Iterator[tuple[claims.Claim, claims.Verdict, dict, dict]]:
    """Every claim, its verdict by the published records, their estimates, and the strongest record of an experiment."""
    found: dict[str, list[records.Record]] = {}
    for record in records.published():
        found.setdefault(record.chapter, []).append(record)
    for claim in claims.load().values():
        of_chapter = found.get(claim.chapter, [])
        evidence = claims.evidence(of_chapter)
        yield claim, claims.judge(claim, evidence), evidence, records.strongest(of_chapter)


def rows() -> list[dict]:
    """A row for every claim, with its verdict and why, what its tests measured, where, and what is stale of that."""
    found, reasons = [], {}  # why each record is stale, asked once: several claims may rest on it
    for claim, verdict, evidence, strongest in _judged():
        used = [record for name, record in strongest.items() if name in verdicts.experiments_of(claim)]
        judged = [(test, evidence[test.measure]) for test in claim.tests if test.measure in evidence]
        mains = [(test, estimate) for test, estimate in judged if test.role == "main"]
        row = {name: getattr(claim, name) for name in ("id", "section", "claim", "kind", "chapter")}
        row |= {"verdict": verdict.word, "because": verdict.because}
        row["effects"] = [f"{t.when}: {e}: {verdicts.outcome(t, evidence, strongest)}" for t, e in judged]
        row["n"] = sorted({estimate.n for _, estimate in mains if estimate.method != "exact"})
        row["bars"] = [_bar(test, estimate) for test, estimate in mains]
        row["tests"] = [_told(test, evidence.get(test.measure), verdict.outcomes[test.measure]) for test in claim.tests]
        row["hardware"] = sorted({verdicts.hardware(r) for r in used})
        row["machines"] = sorted({records.machine(made["device"]) for r in used for made in r.made})
        for record in used:
            name = record.chapter, record.experiment
            if name not in reasons:
                reasons[name] = verdicts.stale_reasons(record)
        found.append(row | {"stale": sorted({why for r in used for why in reasons[r.chapter, r.experiment]})})
    return found


def _told(test: claims.Test, found: stats.Estimate | None, outcome: str) -> dict:
    """A test as a row: its rule, and the interval and outcome of what was measured, empty where nothing was."""
    rule = {name: getattr(test, name) for name in ("measure", "role", "when", "direction", "bound", "unit", "since")}
    measured = {name: getattr(found, name, "") for name in ("mean", "low", "high", "n", "confidence", "method")}
    return rule | measured | {"outcome": outcome}


def chance() -> tuple[int, float]:
    """How many tests an interval has decided, and how many of these chance alone would decide wrongly at the most.

    A decision is wrong if the truth lies on the other side of the bound, which one end of an interval misses with half
    of what its confidence leaves; all the looks at a test together no more often (claims.AT_EACH_LOOK).
    """
    risks = []
    for claim, verdict, evidence, _ in _judged():
        tests = [test for test in claim.tests if verdict.outcomes[test.measure] in ("holds", "fails")]
        risks += [(1 - t.confidence) / 2 for t in tests if evidence[t.measure].method != "exact"]
    return len(risks), sum(risks)


def _bar(test: claims.Test, found: stats.Estimate) -> dict:
    """A test's interval in units of its bound, on the claim's side: 0 is no effect, 1 the smallest that matters."""
    start = claims.no_effect(test)
    scale = abs(test.bound - start) or 1.0
    sign = -1 if test.direction == "less" and test.bound >= start else 1
    low, high = sorted(sign * (end - start) / scale for end in (found.low, found.high))
    bound = 1.0 if sign == -1 or test.bound >= start else -1.0
    return {
        "low": low,
        "high": high,
        "bound": bound,
        "outcome": claims.outcome(test, found),
        "told": f"{test.when}: {found}",
    }


def forest(bars: Sequence[dict], width: int = 90, reach: float = 3.0) -> str:
    """Intervals under each other as a small picture in HTML; grey is no effect, black the bound, both ends are cut."""
    place = lambda value: width * (max(-reach, min(reach, value)) + reach) / (2 * reach)  # noqa: E731
    lines, high = [f'<line x1="{place(0)}" x2="{place(0)}" y1="0" y2="100%" class="zero"/>'], 7 * len(bars) + 5
    for line, bar in enumerate(bars):
        y, (left, right) = 7 * line + 6, (place(bar["low"]), place(bar["high"]))
        if right - left < 3:  # a count, or an interval that is cut off: still to be seen
            middle = min(max((left + right) / 2, 2.5), width - 2.5)
            left, right = middle - 2.5, middle + 2.5
        x = place(bar["bound"])
        lines.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 3}" y2="{y + 3}" class="bound"/>')
        told = f"<title>{html.escape(bar['told'])}</title>"
        lines.append(f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{y}" y2="{y}" class="{bar["outcome"]}">{told}</line>')
    told = html.escape("; ".join(bar["told"] for bar in bars), quote=True)
    return f'<svg class="forest" width="{width}" height="{high}" role="img" aria-label="{told}">{"".join(lines)}</svg>'


def table(rows: Sequence[dict]) -> page.Block:
    """Rows of the ledger, a line each; a claim opens to its effects. Sorted and filtered by _static/ledger.js."""
    heads = ("verdict", "claim", "why", "effects", "n", "chapter", "device")
    lines, text = [], []
    for row in rows:
        inside = "".join(f"<li>{page.inline(effect)}</li>" for effect in row["effects"])
        where = "".join(f"<p>{page.inline(one)}.</p>" for one in row["hardware"])
        stale = f"<p><strong>Stale</strong>: {page.inline(verdicts.some(row['stale']))}.</p>" if row["stale"] else ""
        link = f'<a href="{row["chapter"]}.html#{row["id"]}"><code>{row["id"]}</code></a>' if row["effects"] else ""
        claim = f"{page.inline(row['claim'])}"
        if row["effects"]:
            claim = f"<details><summary>{claim}</summary><ul>{inside}</ul>{where}{stale}{link}</details>"
        n = "–".join(str(end) for end in dict.fromkeys((row["n"][0], row["n"][-1]))) if row["n"] else ""
        device = ", ".join(dict.fromkeys(re.sub(r"^.* of |\(R\)| Processor| with .*$", "", m) for m in row["machines"]))
        mark = ' <abbr title="a record is stale">†</abbr>' if row["stale"] else ""
        cells = (
            verdicts.badge(row["verdict"]) + mark, claim, f'<span class="why">{page.inline(row["because"])}</span>',
            forest(row["bars"]) if row["bars"] else "", n, row["chapter"], device,
        )  # fmt: skip
        cells = "".join(f'<td data-label="{head}">{cell}</td>' for head, cell in zip(heads, cells, strict=True))
        lines.append(f'<tr id="row-{row["id"]}">{cells}</tr>')
        old = f" Stale: {verdicts.some(row['stale'])}." if row["stale"] else ""
        text.append(
            f"{row['verdict']}: {row['claim']} ({row['id']}; {row['because']}). {'; '.join(row['effects'])}{old}"
        )
    head = "".join(f"<th>{one}</th>" for one in heads)
    shown = f'<table class="measured ledger"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    return page.Block(f'<div class="ledger-filters"></div>{shown}', "\n".join(text))
