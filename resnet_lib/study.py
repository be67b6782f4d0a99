"""A chapter's run: each experiment is declared once, then measured, recorded, grown, shown and judged alike."""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from resnet_lib import (
    ceilings,
    claims,
    data,
    devices,
    freshness,
    page,
    parameters,
    plots,
    precision,
    records,
    stats,
    sweep,
    verdicts,
)
from resnet_lib.paths import cache_folder, project_root

LONG = 6  # rows of a table that stands open
BOOK_PAGE = "BOOK_PAGE"  # set in the environment of a run whose outputs become the book's pages
WHY_CLEAN = "a published record names the commit whose code made it"


@dataclass(frozen=True)
class Experiment:
    """One question: which runs, what each measures, which estimates follow, and how they are told and drawn.

    `s`, which all its functions take, holds the declared settings and nothing else of the chapter (see `Settings`).
    """

    name: str  # names the record; the first half of its measures in claims.yml
    run: Callable[..., list[dict]]  # (s, **condition) → rows; what it reaches is what a record's freshness hashes
    conditions: Callable[..., list[dict]]  # (s) → the runs; raises ValueError for settings that allow none
    estimates: Callable[..., dict]  # (rows, s) → {measure: stats.Estimate}; of published rows too
    settings: tuple[str, ...] = ()  # the chapter's parameters that decide the rows; `s` refuses any other
    counts: tuple[str, ...] = ()  # parameters that say only how many runs: `conditions` reads them, no key holds them
    tiny: dict = field(default_factory=dict)  # settings and counts under which it runs in a second or two
    finding: Callable[..., str] | None = None  # (rows, s, e) → what was found, in sentences; e: measure → Estimate
    figure: Callable[..., str] | None = None  # (rows, s) → draws, and returns the caption that states the finding
    alt: str = ""  # the figure in words, for those who can't see it
    table: Callable[..., page.Table] | None = None  # (rows, s)
    notes: Callable[..., list[str]] | None = None  # (rows, s) → "experiment/estimate: why it could not be measured"
    kept: tuple[str, ...] = ()  # of runs that several experiments share: the values of `what` whose rows are its own
    needs: "Experiment | None" = None  # measured before this one
    choose: Callable[..., dict] | None = None  # (rows of `needs`, its s) → settings chosen by measuring; not for `run`
    timed: bool = False  # the rows are times: never grown on another device, never attested

    def __post_init__(self):
        if self.figure and not self.alt:
            raise ValueError(f"experiment {self.name!r} draws a figure and says no alt text for those who can't see it")
        if (self.needs is None) != (self.choose is None):
            raise ValueError(f"experiment {self.name!r}: needs and choose go together")


class Settings:
    """What an experiment may read: its declared settings, and what the whole chapter shares.

    Always: each declared setting by its name; `seeds`, a list; `facts`, what Dataset.about says of the data.
    While measuring also: `pictures`, the Dataset, and `device`, a torch.device.
    """

    def __init__(self, experiment: str, values: dict, **shared):
        self.__dict__ |= values | shared
        self._experiment, self._values = experiment, values

    @property
    def chance_error(self) -> float:
        """The error of naming a class at random."""
        return 1 - 1 / self.facts["classes"]

    def __getattr__(self, name: str):
        if name in ("pictures", "device"):
            raise AttributeError(f"{self._experiment}: only a run may read s.{name}; what is shown comes from rows")
        raise AttributeError(
            f"{self._experiment} reads s.{name}, which it does not declare; its settings are "
            f"{', '.join(self._values) or 'none'} (add it to settings=…, so that every record holds it)"
        )


def settings_of(experiment: Experiment, record: records.Record) -> Settings:
    """The `s` with which a record's rows are estimated, told and drawn."""
    return Settings(experiment.name, record.settings, seeds=record.seeds, facts=record.data)


def estimates_of(experiment: Experiment, record: records.Record) -> dict[str, stats.Estimate]:
    return experiment.estimates(record.rows, settings_of(experiment, record))


@dataclass
class Study:
    """One run of a chapter."""

    chapter: str
    values: dict  # the chapter's parameters
    experiments: tuple[Experiment, ...]
    pictures: data.Dataset
    device: torch.device
    made: dict[str, records.Record] = field(default_factory=dict)  # experiment → this run's record
    finished: dict[str, list[dict]] = field(default_factory=dict)  # the runs of this process, by key
    judged: set[str] = field(default_factory=set)  # ids of the claims shown so far
    splits: dict[int, data.Dataset] = field(default_factory=dict)  # the first seed's pictures and those in use
    saves: bool = True  # records; False in a process that only helps another with its runs
    before_run: Callable[[], object] | None = None  # called before each run that is made; what it raises stops there

    @classmethod
    def open(cls, chapter: str, namespace: dict, experiments: Sequence[Experiment]) -> "Study":
        """Check the parameters, load the data, choose the device, and refuse now what could not be measured later.

        Args:    namespace: a notebook's `globals()`, whose annotated names are the parameters.
        Raises:  ValueError naming parameter, value and rule; OSError where records cannot be written.
        """
        values = parameters.check(namespace)
        if values["seeds"] < 2:
            raise ValueError(f"seeds={values['seeds']}: an interval needs at least 2, and 3 to be worth showing")
        if values["records_to"]:
            records.check_writable(values["records_to"])
            own = Path(values["records_to"]).expanduser().resolve() == project_root() / "records"
            if own and (files := records.uncommitted()):
                raise ValueError(f"records_to={values['records_to']!r}: commit {', '.join(files)} first; {WHY_CLEAN}")
        if values.get("resume"):
            records.check_writable(cache_folder())
        pictures = _pictures(values, seed=0)
        if values.get("batch_size", 1) > len(pictures.train):
            raise ValueError(
                f"batch_size={values['batch_size']} is larger than the {len(pictures.train)} training pictures"
            )
        device = devices.choose(values["device"])
        if "number_format" in values:
            values["number_format"] = ceilings.choose_precision(values["number_format"], device)  # where it is auto
        study = cls(chapter, values, tuple(experiments), pictures, device)
        for experiment in study.experiments:
            study._check(experiment)
        return study

    def _check(self, experiment: Experiment) -> None:
        names = (*experiment.settings, *experiment.counts)
        if unknown := [name for name in names if name not in self.values]:
            raise ValueError(
                f"experiment {experiment.name!r} declares {', '.join(unknown)}: no parameter of {self.chapter}"
            )
        try:
            experiment.conditions(self._settings(experiment, {}))
        except AttributeError:
            if not experiment.needs:  # else what is chosen for it is not known yet
                raise

    def _settings(self, experiment: Experiment, chosen: dict) -> Settings:
        values = {name: self.values[name] for name in (*experiment.settings, *experiment.counts)} | chosen
        shared = {"seeds": list(range(self.values["seeds"])), "facts": self.pictures.about()}
        return Settings(experiment.name, values, **shared, pictures=self.pictures, device=self.device)

    def measure(self, experiment: Experiment) -> list[dict]:
        """Run what is missing, record it, and return the rows.

        With `records_to`, runs that the record there has (same code, settings and data) are taken from it.
        """
        chosen = {}
        if experiment.needs:
            first = self.made[experiment.needs.name].rows if experiment.needs.name in self.made else None
            first = self.measure(experiment.needs) if first is None else first
            chosen = experiment.choose(first, self._settings(experiment.needs, {}))
        code = freshness.code_of(experiment.run)
        settings = records.as_stored([{name: self.values[name] for name in experiment.settings} | chosen])[0]
        wanted = experiment.conditions(self._settings(experiment, chosen))
        facts = self.pictures.about() | ({"splits": "by seed"} if any("seed" in one for one in wanted) else {})
        base = self._grown(experiment, settings, code, facts)
        known = [_rows_of(condition, base.rows if base else []) for condition in wanted]
        environment = records.environment(devices.describe(self.device))
        missing = [condition for condition, rows in zip(wanted, known, strict=True) if not rows]
        fresh = self._run(experiment, missing, code, facts, records.machine(environment["device"]))
        wall_s = (base.wall_s if base else 0.0) + sum(rows[0]["run_s"] for rows in fresh if rows)
        made = [*(base.made if base else []), *([environment] if fresh or not base else [])]
        mark = {"made": len(made) - 1} if len(made) > 1 else {}
        kept = [[row | mark for row in rows if self._keeps(experiment, row)] for rows in fresh]
        rows = [row for found in known for row in (found or kept.pop(0))]
        record = records.Record(
            self.chapter, experiment.name, self.values["profile"], settings, facts, rows, {}, code, made,
            rules=self._rules(experiment), attested=base.attested if base else [], wall_s=wall_s,
        )  # fmt: skip
        self.made[experiment.name] = record = _estimated(experiment, record)
        if self.values["records_to"] and self.saves:
            records.save(record, self.values["records_to"])
        return rows

    def _run(
        self, experiment: Experiment, missing: list[dict], code: dict, facts: dict, device: str
    ) -> list[list[dict]]:
        """The rows of each condition, from this process, the cache, or a run."""
        function = functools.partial(self._one, experiment, {})
        function.__name__ = experiment.name
        recipe = {
            "code": code,
            "settings": records.as_stored([{name: self.values[name] for name in experiment.settings}])[0],
            "data": [facts["fingerprint"], facts["test"], facts.get("splits")],
            "device": device,  # with its instruction set, which decides the last digits
            "torch": torch.__version__,
        }
        with precision.number_format(self.values.get("number_format", "fp32")):  # PyTorch's default allows some TF32
            how = {"resume": self.values["resume"], "finished": self.finished, "before": self.before_run}
            return sweep.run(function, missing, recipe=recipe, **how)

    def _one(self, experiment: Experiment, settings: dict, **condition) -> list[dict]:
        """One run. What was chosen comes by its condition, so that experiments which choose otherwise share it."""
        s = self._settings(experiment, settings)
        s.pictures = self._of_seed(condition.get("seed", 0))
        return experiment.run(s, **condition)

    def again(self, experiment: Experiment, record: records.Record) -> tuple[list[dict], list[dict], list[list[dict]]]:
        """A record's cheapest run: its rows there, those of the same run made now, and the recorded ones of all seeds.

        Of a record whose seeds shared one split, only the first seed's runs can be made again.
        """
        wanted = experiment.conditions(self._settings(experiment, record.settings))
        known = [(condition, _rows_of(condition, record.rows)) for condition in wanted]
        known = [(condition, rows) for condition, rows in known if rows]
        able = [one for one in known if "splits" in record.data or not one[0].get("seed")]
        condition, recorded = min(able, key=lambda one: one[1][0].get("run_s", 0.0))
        with precision.number_format(record.settings.get("number_format", "fp32")):
            made = self._one(experiment, record.settings, **condition)
        made = [condition | row for row in made]
        alike = {name: value for name, value in condition.items() if name != "seed"}
        siblings = [rows for other, rows in known if alike.items() <= other.items() and len(rows) == len(recorded)]
        return recorded, records.as_stored(row for row in made if self._keeps(experiment, row)), siblings

    def _of_seed(self, seed: int) -> data.Dataset:
        """The pictures as a seed splits them: what chance does to the choice of pictures belongs into an interval."""
        if seed not in self.splits:
            self.splits = {0: self.pictures, seed: self.pictures if seed == 0 else _pictures(self.values, seed)}
        return self.splits[seed]

    def _keeps(self, experiment: Experiment, row: dict) -> bool:
        return not experiment.kept or row["what"] in experiment.kept

    def _rules(self, experiment: Experiment) -> dict[str, str]:
        tests = [test for claim in verdicts.of_chapter(self.chapter) for test in claim.tests]
        return {t.measure: claims.rule_hash(t) for t in tests if t.measure.split("/")[0] == experiment.name}

    def _grown(self, experiment: Experiment, settings: dict, code: dict, facts: dict) -> records.Record | None:
        """The record in `records_to` that this measurement continues; times continue on their own device alone."""
        if not self.values["records_to"]:
            return None
        machine, run = records.machine(devices.describe(self.device)), freshness.name_of(experiment.run)
        for record in records.published(self.chapter, experiment.name, self.values["records_to"]):
            if (
                record.profile == self.values["profile"]
                and records.same_runs(record, settings, facts, code, run)
                and (not experiment.timed or records.machine(record.device) == machine)
            ):
                return record
        return None

    @property
    def _shows_published_first(self) -> bool:
        """In the book's pages. A reader who runs a chapter, or has data of their own, came for their own result."""
        return bool(os.environ.get(BOOK_PAGE)) and self.values["dataset"] == "digits"

    def _published(self) -> list[records.Record]:
        return records.published(self.chapter)

    def _evidence(self) -> dict[str, stats.Estimate]:
        """Of every measure the estimate that the page speaks of."""
        theirs, mine = claims.evidence(self._published()), claims.evidence(self.made.values())
        return mine | theirs if self._shows_published_first else theirs | mine

    def front(
        self,
        answer: Callable[[dict], str],
        experiment: Experiment,
        figure: Callable[..., str] | None = None,
        second: Experiment | None = None,
    ) -> None:
        """The first screen: the answer, the one or two figures that show it, and the claims with their verdicts.

        Args: figure: in place of the experiment's own, where that is too tall; second: whose figure stands below.
        """
        found = self._published()
        strongest = records.strongest(found)
        shown = [replace(experiment, figure=figure or experiment.figure), *([second] if second else [])]
        if experiment.name not in strongest:
            page.say("No measurement of this chapter has been published yet; what follows is this run's own.")
        else:
            try:
                page.say(answer(claims.evidence(found)))
            except KeyError as error:
                page.say(f"The published records do not hold {error} yet: the answer comes from this run, below.")
            for one in shown:
                if one.name in strongest:
                    page.show(self._drawn(one, strongest[one.name]))
        page.show(page.stack(verdicts.strip(self.chapter, found), self._setting(found)))

    def _setting(self, found: Sequence[records.Record]) -> page.Block:
        """This run's data, device and parameters, folded, and what kind of device the published records lack."""
        machine = f"{records.machine(devices.describe(self.device))}, PyTorch {torch.__version__}."
        values = [{"name": name, "value": repr(value)} for name, value in self.values.items()]
        inside = [
            page.paragraph(f"{self.pictures.about()['text']} {machine}"),
            page.table(values, {"name": "parameter", "value": "value"}),
        ]
        if not any(made["device"]["device"] == "cuda" for record in found for made in record.made):
            text = "No record of this chapter was made on a GPU yet: its published results are a CPU's."
            inside.insert(0, page.paragraph(text))
        return page.fold("The run that made this page: data, device, parameters", *inside)

    def say(self, words: Callable[[dict], str]) -> None:
        """Sentences with the estimates that the page speaks of."""
        try:
            page.say(words(self._evidence()))
        except KeyError as error:
            page.say(f"Neither the published records nor this run hold {error} yet.")

    def show(self, experiment: Experiment, folded: bool = False) -> None:
        """Finding, figure and table of the strongest evidence, the claims it completes, and the other run folded.

        Args: folded: only the finding stands open; for what stands beside a chapter's main questions.
        """
        mine = self.made[experiment.name]
        theirs = records.strongest(self._published()).get(experiment.name)
        if theirs and theirs.made == mine.made:
            theirs = None  # this run's own, saved a moment ago
        first, second = (theirs, mine) if theirs and self._shows_published_first else (mine, theirs)
        parts = [self._told(experiment, first, folded)]
        if first is mine and self._shows_published_first:
            parts.append(page.paragraph("Not published yet: this is the page's own small run."))
        names = {record.experiment for record in self.made.values()}
        complete = [c for c in verdicts.of_chapter(self.chapter) if verdicts.experiments_of(c) <= names]
        complete = [c for c in complete if c.id not in self.judged]
        self.judged |= {claim.id for claim in complete}
        own = list(self.made.values())
        firsts, seconds = (self._published(), own) if first is theirs else (own, self._published())
        parts += [verdicts.block(claim, firsts, judge_age=first is theirs) for claim in complete]
        if second:
            words, whom = (
                ("This page's own run", "this run") if second is mine else ("The published run", "the records")
            )
            inside = [self._told(experiment, second)]
            inside += [
                page.paragraph(f"`{claim.id}`: **{claims.judge(claim, claims.evidence(seconds)).word}** by {whom}.")
                for claim in complete
            ]
            parts.append(page.fold(f"{words}: {second.data['name']}, {second.profile}, {_runs(second)}", *inside))
        page.show(page.stack(*parts, page.source(experiment.run)))

    def _told(self, experiment: Experiment, record: records.Record, folded: bool = False) -> page.Block:
        s = settings_of(experiment, record)
        estimates = {name: stats.Estimate(**estimate) for name, estimate in record.estimates.items()}
        finding = page.Block("", "")
        if experiment.finding:
            finding = page.paragraph(f"**Finding.** {experiment.finding(record.rows, s, estimates)}")
        parts = []
        if experiment.figure:
            parts.append(self._drawn(experiment, record))
        if experiment.table:
            table = experiment.table(record.rows, s)
            parts.append(table if table.rows <= LONG else page.fold(f"The numbers, {table.rows} rows", table))
        notes = [page.paragraph(f"Note: {_in_words(self.chapter, note)}.") for note in record.notes]
        parts += (
            [page.fold(f"What was not measured, and why: {len(notes)} quantities", *notes)] if len(notes) > 2 else notes
        )
        return page.stack(finding, *([page.fold("Figure and numbers", *parts)] if folded and parts else parts))

    def _drawn(self, experiment: Experiment, record: records.Record) -> page.Block:
        try:
            import matplotlib  # noqa: F401  a bare machine measures without it
        except ImportError:
            return page.Block("", "")
        with plots.captured() as pictures:
            words = experiment.figure(record.rows, settings_of(experiment, record))
        *before, last = pictures
        where = f" ({verdicts.hardware(record)}; {_runs(record)})"
        return page.stack(
            *(page.figure(png, experiment.alt, "") for png in before), page.figure(last, experiment.alt, words + where)
        )

    def close(self) -> None:
        """Hold the chapter to its claims: every experiment measured, every claim judged where a reader sees it.

        Raises: AssertionError naming what is missing.
        """
        unmeasured = [experiment.name for experiment in self.experiments if experiment.name not in self.made]
        unjudged = [claim.id for claim in verdicts.of_chapter(self.chapter) if claim.id not in self.judged]
        assert not unmeasured, f"not measured: {', '.join(unmeasured)}"
        assert not unjudged, f"not judged: {', '.join(unjudged)}"


def _pictures(values: dict, seed: int) -> data.Dataset:
    """The chapter's pictures as split for one seed; a test or validation set that the source brings never changes."""
    options = {name: values[name] or None for name in ("mirror", "image_size", "labels") if name in values}
    options |= {"colour": values.get("colour", "auto"), "seed": seed}
    sizes = {name: values[name] for name in ("train_size", "val_fraction")}
    return data.with_test_size(data.load(values["dataset"], **sizes, **options), values.get("test_size", 0))


def _estimated(experiment: Experiment, record: records.Record) -> records.Record:
    """The record with the estimates and notes that follow from its rows."""
    estimates = {name: estimate.as_dict() for name, estimate in estimates_of(experiment, record).items()}
    notes = experiment.notes(record.rows, settings_of(experiment, record)) if experiment.notes else []
    return replace(record, estimates=estimates, notes=notes)


def _runs(record: records.Record) -> str:
    if record.seeds:
        return f"n={len(record.seeds)}"
    rounds = max((len(row.get("times_s", ())) for row in record.rows), default=0)
    rounds = rounds or len({row["round"] for row in record.rows if "round" in row})
    return f"{rounds} rounds" if rounds else "exact"


def _in_words(chapter: str, note: str) -> str:
    """A note about a measure that was not made, with the measure's condition or its name in words."""
    name, _, why = note.partition(": ")
    said = {test.measure: test.when for claim in verdicts.of_chapter(chapter) for test in claim.tests}
    words = said.get(name) or name.rpartition("/")[2].replace("_", " ")
    return f"not measured {words}: {why}" if name in said else f"{words}: {why}"


def _rows_of(condition: dict, rows: Sequence[dict]) -> list[dict]:
    wanted = records.as_stored([condition])[0]
    return [row for row in rows if all(name in row and row[name] == value for name, value in wanted.items())]
