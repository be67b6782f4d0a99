"""Make the cheapest run of each published record again, and note in the record whether it still comes out so.

python -m tools.recheck [chapter …] --set dataset=pictures.tar.xz --minutes 15

On a machine like the one that made the run its numbers must be the same to six digits; on another, every one must lie
within three standard deviations over seeds. Times are left out: they are measured again, not checked.
"""

import datetime
import math
import statistics
import sys
import time
from dataclasses import replace

from tools import measure
from tools.attest import TIMES
from tools.chapters import ROOT, command, given

DEVIATIONS = 3
LEAST_SEEDS = 3  # from which on a deviation over seeds says something


def compare(recorded: list[dict], again: list[dict], siblings: list[list[dict]] | None) -> str:
    """Why a run's rows are not what they were; "" where they agree.

    Args: siblings: the recorded rows of all seeds, on another machine; None asks for the same numbers.
    """
    if len(recorded) != len(again):
        return f"{len(recorded)} rows were recorded, and {len(again)} came out"
    for place, (old, new) in enumerate(zip(recorded, again, strict=True)):
        for name in old.keys() & new.keys():
            if TIMES.search(name) or old[name] == new[name]:
                continue
            told = f"{name} of row {place} was {old[name]!r} and came out as {new[name]!r}"
            if siblings is None or type(old[name]) is not float or type(new[name]) is not float:
                return told
            values = [rows[place][name] for rows in siblings if type(rows[place].get(name)) is float]
            if len(values) < LEAST_SEEDS:
                return f"{told}, and {len(values)} seeds say nothing of its spread"
            allowed = DEVIATIONS * statistics.stdev(values)
            if not math.isfinite(allowed) or abs(old[name] - new[name]) > allowed:
                return f"{told}, more than {DEVIATIONS} deviations ({allowed:.2g})"
    return ""


def check(chapter: str, settings: list[tuple[str, str]], until: float, log=print) -> list[dict]:
    """Check what can be checked of a chapter's published records; a row each says how it went."""
    from resnet_lib import devices, records

    experiments = {experiment.name: experiment for experiment in measure.experiments_of(chapter)}
    table, studies = [], {}
    for record in records.published(chapter):
        row = {"chapter": chapter, "record": record.file_name}
        experiment = experiments.get(record.experiment)
        if experiment is None or experiment.timed:
            table.append(row | {"outcome": "times" if experiment else "unknown", "why": ""})
            continue
        if time.monotonic() > until:
            table.append(row | {"outcome": "due", "why": "the minutes are spent"})
            continue
        key = record.profile, max(2, len(record.seeds))
        if key not in studies:
            known, values = measure.parameters_of(chapter, record.profile, settings)
            studies[key] = measure.open_study(chapter, known, values | {"seeds": key[1], "resume": False})
        study = studies[key]
        if record.data["fingerprint"] != study.pictures.fingerprint:
            table.append(
                row | {"outcome": "due", "why": f"its pictures, {record.data['name']}, are not the ones given"}
            )
            continue
        log(f"{chapter}/{record.experiment} …")
        recorded, again, siblings = study.again(experiment, record)
        made = record.made[recorded[0].get("made", 0)]
        now = records.environment(devices.describe(study.device))
        places = [(records.machine(at["device"]), at["packages"].get("torch")) for at in (made, now)]
        alike = places[0] == places[1]
        why = compare(recorded, again, None if alike else siblings)
        entry = {"date": datetime.date.today().isoformat(), "commit": records.commit(), "machine": places[1][0]}
        entry |= {"how": "to six digits" if alike else f"within {DEVIATIONS} deviations over seeds", "why": why}
        records.save(replace(record, checked=[*record.checked, entry]), ROOT / "records")
        table.append(row | {"outcome": "disagrees" if why else "agrees", "why": why})
    return table


def main(arguments: list[str] | None = None) -> int:
    parser = command("tools.recheck", __doc__)
    parser.add_argument("chapters", nargs="*", help="default: every chapter with records")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter; may be repeated")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no run begins after these")
    options = parser.parse_args(arguments)
    from resnet_lib import records

    try:
        settings = given(options.set)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if files := records.uncommitted():
        print(f"error: commit {', '.join(files)} first: a check names the commit whose code it tried", file=sys.stderr)
        return 2
    until = time.monotonic() + 60 * options.minutes
    table = []
    for chapter in options.chapters or sorted({record.chapter for record in records.published()}):
        try:
            table += check(chapter, settings, until)
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    for row in table:
        print(f"{row['outcome']:10} {row['chapter']}/{row['record']}" + (f": {row['why']}" if row["why"] else ""))
    return int(any(row["outcome"] == "disagrees" for row in table))


if __name__ == "__main__":
    sys.exit(main())
