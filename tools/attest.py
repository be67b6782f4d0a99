"""Attest stale records: does the code of today give the very rows that the code which made them gives, on this machine?

python -m tools.attest [chapter …]

Of each record whose code has changed, its experiment runs at its tiny size twice, in a worktree of the commit that made
the record and here. Where all rows agree, times aside, the record notes it and is current again; else it stays stale,
and the table says why. A timing cannot be attested: it must be measured again.
"""

import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from resnet_lib.parameters import declared_in
from tools import measure
from tools.chapters import ROOT, command, read

TIMES = re.compile(r"(^|_)(s|ms|us|made)$|^time_")  # columns that two runs of the same code do not share
HOW = "tiny rows at the commit that made the record and at this one, on one machine: identical, times aside"


def tiny(experiments: tuple) -> dict:
    """The smallest settings at which all of a chapter runs."""
    values = {"seeds": 2, "device": "cpu", "profile": "attest"}
    for experiment in experiments:
        values |= experiment.tiny
    return values


def settings_at(folder: Path, chapter: str, values: dict) -> list[tuple[str, str]]:
    """Of these values, those that the chapter declares in a checkout, as a command line takes them."""
    known = declared_in(read(folder / "chapters" / f"{chapter}.ipynb"))
    return [
        (name, value if isinstance(value, str) else json.dumps(value))
        for name, value in values.items()
        if name in known
    ]


def rows_at(folder: Path, chapter: str, values: dict, out: Path) -> dict[str, list[dict]]:
    """The tiny rows of a chapter, by experiment, measured by the code in a checkout.

    Raises: RuntimeError with the end of what the run printed, where it failed.
    """
    pairs = settings_at(folder, chapter, values | {"records_to": str(out)})
    if (folder / "tools" / "measure.py").is_file():
        command = ["tools.measure", chapter, *(word for name, value in pairs for word in ("--set", f"{name}={value}"))]
    else:
        given = [word for name, value in pairs for word in ("-p", name, value)]
        command = ["tools.script", f"chapters/{chapter}.ipynb", "--only-measurements", *given]
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise RuntimeError(f"{chapter} at {folder}: {done.stderr.strip()[-600:]}")
    found = [json.loads(path.read_text("utf-8")) for path in sorted((out / chapter).glob("*.json"))]
    return {record["experiment"]: record["rows"] for record in found}


def same(row: dict, other: dict) -> bool:
    """Whether two rows agree: in every column that both have, and every measured number of the first is compared.

    A label that one of them lacks, which a record got later, is no difference.
    """
    shared = row.keys() & other.keys()
    return all(name in shared for name, value in row.items() if type(value) is float) and all(
        row[name] == other[name] for name in shared
    )


def comparable(rows: list[dict], kinds: set) -> list[dict]:
    """Rows of these kinds without times, as a record stores them."""
    from resnet_lib.records import as_stored

    own = [row for row in rows if row.get("what") in kinds or "what" not in row]
    return as_stored({name: value for name, value in row.items() if not TIMES.search(name)} for row in own)


def difference(record, before: dict[str, list[dict]], after: list[dict]) -> str:
    """Why the rows before and after are not the same in what the record published; "" where they are."""
    columns = {name for row in record.rows for name in row if not TIMES.search(name)}
    if missing := columns - {name for row in after for name in row}:
        return f"the code of today gives no column {', '.join(sorted(missing))}"
    kinds = {row.get("what") for row in record.rows}
    if "splits" not in record.data:  # made when all seeds shared the first one's split: only its rows can be the same
        before = {name: [row for row in rows if not row.get("seed")] for name, rows in before.items()}
        after = [row for row in after if not row.get("seed")]
    now = [{k: v for k, v in row.items() if k in columns} for row in comparable(after, kinds)]
    there = comparable([row for rows in before.values() for row in rows], kinds)
    own = comparable(before.get(record.experiment, []), kinds)
    new = [row for row in now if not any(same(row, other) for other in there)]
    gone = [row for row in own if not any(same(other, row) for other in now)]
    if new or gone:
        example = json.dumps((new or gone)[0])[:200]
        return f"{len(new)} of {len(now)} rows are new and {len(gone)} gone, for example {example}"
    return ""


def attest(chapter: str, log=print) -> list[dict]:
    """Attest what can be attested of a chapter's published records; a row each says how it went."""
    from resnet_lib import freshness, records

    experiments = {experiment.name: experiment for experiment in measure.experiments_of(chapter)}
    found, table, runs, today = records.published(chapter), [], {}, {}
    with tempfile.TemporaryDirectory(prefix="attest-") as temporary:
        folder = Path(temporary)
        for record in found:
            experiment = experiments.get(record.experiment)
            result = {"record": record.file_name, "chapter": chapter}
            codes = [code for code in (record.code, *(entry["code"] for entry in record.attested)) if code]
            if any(not freshness.changed(code) for code in codes):
                table.append(result | {"outcome": "current", "why": ""})
                continue
            if experiment is None or experiment.timed:
                why = "times cannot be attested: measure again" if experiment else "no experiment has this name"
                table.append(result | {"outcome": "stale", "why": why})
                continue
            made = record.made[-1]
            commit = made.get("code_commit") or made["commit"]
            try:
                if commit not in runs:
                    log(f"{chapter}: running the code of {commit} and of today …")
                    runs[commit] = both(folder, chapter, commit, tuple(experiments.values()), today)
                before, after = runs[commit]
                why = difference(record, before, after.get(record.experiment, []))
            except RuntimeError as error:
                why = str(error)
            if not why:
                entry = {"commit": records.commit(), "date": datetime.date.today().isoformat(), "how": HOW}
                entry |= {"code": freshness.code_of(experiment.run)}
                records.save(replace(record, attested=[*record.attested, entry]), ROOT / "records")
            table.append(result | {"outcome": "stale" if why else "attested", "why": why})
    return table


def both(folder: Path, chapter: str, commit: str, experiments: tuple, today: dict[str, dict]) -> tuple[dict, dict]:
    """The tiny rows by the code of a commit and by that of today, which are made once for each number format."""
    from resnet_lib import devices, precision

    tree = folder / commit
    done = subprocess.run(
        ["git", "worktree", "add", "--detach", str(tree), commit], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"commit {commit} is not here: {done.stderr.strip()}")
    try:
        values = tiny(experiments)
        # before a chapter had this parameter, it trained in what the instruction set names
        has_format = "number_format" in declared_in(read(tree / "chapters" / f"{chapter}.ipynb"))
        auto = precision.reported(devices.choose("cpu"))
        values["number_format"] = "fp32" if has_format else auto
        before = rows_at(tree, chapter, values, folder / f"{commit}-before")
        form = values["number_format"]
        if form not in today:
            today[form] = rows_at(ROOT, chapter, values, folder / f"{form}-after")
        return before, today[form]
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, capture_output=True)


def main(arguments: list[str] | None = None) -> int:
    from resnet_lib import records

    parser = command("tools.attest", __doc__)
    parser.add_argument("chapters", nargs="*", help="default: every chapter that has records")
    options = parser.parse_args(arguments)
    there = sorted(path.name for path in (ROOT / "records").iterdir() if path.is_dir())
    if unknown := [name for name in options.chapters if name not in there]:
        parser.error(f"no records of {', '.join(unknown)}; there are those of {', '.join(there)}")
    if files := records.uncommitted():
        print(
            f"error: commit {', '.join(files)} first: an attestation names the commit that it is for", file=sys.stderr
        )
        return 2
    rows = [row for chapter in options.chapters or there for row in attest(chapter)]
    for row in rows:
        print(f"{row['chapter']:13}{row['record']:60}{row['outcome']:10}{row['why']}")
    return int(any(row["outcome"] == "stale" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
