"""Verdicts as a reader sees them: a chapter's claims with this run beside the published one, and the ledger of all."""

from collections.abc import Sequence

from resnet_lib import claims, page, records

MARKS = {"holds": "holds", "fails": "**does not hold**", "undecided": "undecided", "not tested": "not tested"}


def stale_reasons(record: records.Record) -> list[str]:
    """Why a published record no longer matches the book; the chapter's own code counts where it is at hand."""
    notebook = records.project_root() / "chapters" / f"{record.chapter}.ipynb"
    functions = records.notebook_functions(notebook) if notebook.is_file() else record.code["experiment"]
    return records.stale(record, functions)


def show(chapter: str, mine: Sequence[records.Record]) -> None:
    """Print the verdict on each of a chapter's claims: by this run, and by the published records."""
    theirs = records.published(chapter)
    own, published = claims.evidence(mine), claims.evidence(theirs)
    for claim in claims.load().values():
        if claim.chapter != chapter:
            continue
        rows = []
        verdicts = [claims.judge(claim, evidence) for evidence in (own, published)]
        for test in claim.tests:
            row = {
                "when": test.when,
                "needs": f"{claims.DIRECTIONS[test.direction].format(f'{test.bound:g}')} {test.unit}",
            }
            for name, evidence, verdict in zip(("own", "published"), (own, published), verdicts, strict=True):
                found = evidence.get(test.measure)
                row[name] = f"{found}: {MARKS[verdict.outcomes[test.measure]]}" if found else "–"
            rows.append(row)
        columns = {"when": "condition", "needs": "needs", "own": "this run", "published": "published"}
        used = [r for r in theirs if any(t.measure.split("/")[0] == r.experiment for t in claim.tests)]
        page.say(
            f'<a id="{claim.id}"></a>\n\n**{claim.claim}** (`{claim.id}`)\n\n'
            f"This run: **{verdicts[0].word}**. Published: **{verdicts[1].word}**{_provenance(used)}.\n\n"
            f"{page.table(rows, columns)}\n\n"
            f"Measured: {'; '.join(dict.fromkeys(test.what for test in claim.tests))}."
        )


def ledger() -> list[dict]:
    """A row for every claim: id, section, claim, kind, chapter, verdict, effect, hardware, stale."""
    rows = []
    found: dict[str, list[records.Record]] = {}
    for record in records.published():
        found.setdefault(record.chapter, []).append(record)
    for claim in claims.load().values():
        evidence = claims.evidence(found.get(claim.chapter, []))
        verdict = claims.judge(claim, evidence)
        experiments = {test.measure.split("/")[0] for test in claim.tests}
        used = _strongest([r for r in found.get(claim.chapter, []) if r.experiment in experiments])
        effects = [
            f"{test.when}: {evidence[test.measure]}: {MARKS[verdict.outcomes[test.measure]]}"
            for test in claim.tests
            if test.measure in evidence
        ]
        rows.append(
            {
                "id": claim.id,
                "section": claim.section,
                "claim": claim.claim,
                "kind": claim.kind,
                "chapter": claim.chapter,
                "verdict": verdict.word,
                "effects": effects,
                "hardware": sorted({hardware(r) for r in used}),
                "stale": sorted({reason for r in used for reason in stale_reasons(r)}),
            }
        )
    return rows


def table(rows: Sequence[dict], linked: bool = False) -> page.Markdown:
    """Rows of the ledger with their effects; linked: each claim to its place in its chapter's page."""
    shown = [
        {
            "claim": row["claim"] + (f" ([{row['id']}]({row['chapter']}.html#{row['id']}))" if linked else ""),
            "verdict": f"**{row['verdict']}**" + (f"<br>**stale**: {', '.join(row['stale'])}" if row["stale"] else ""),
            "effects": "<br>".join(row["effects"]),
            "hardware": "<br>".join(row["hardware"]),
        }
        for row in rows
    ]
    return page.table(shown, {"claim": "claim", "verdict": "verdict", "effects": "effect", "hardware": "measured on"})


def hardware(record: records.Record) -> str:
    """Where and on what a record was made, in one line."""
    data = record.data
    size = f", {data['shape'][2]}×{data['shape'][1]}, {data['train']:,} to train on" if "shape" in data else ""
    return f"{records.machine(record.environment['device'])}; {data['name']}{size}; profile {record.profile}"


def _strongest(found: Sequence[records.Record]) -> list[records.Record]:
    """The first record of each experiment: the one whose estimates count."""
    return list({r.experiment: r for r in reversed(found)}.values())


def _provenance(found: Sequence[records.Record]) -> str:
    used = _strongest(found)
    if not used:
        return ""
    places = "; ".join(sorted({hardware(r) for r in used}))
    reasons = sorted({reason for r in used for reason in stale_reasons(r)})
    return f" ({places})" + (f" — **stale**: {', '.join(reasons)}" if reasons else "")
