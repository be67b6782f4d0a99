"""What the landing page and README show of the published records: all claims at a glance, and what surprises most."""

import csv
import html
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from resnet_lib import claims, page, plots, records, stats, study, verdicts
from resnet_lib.experiments import augmentation, batch_norm, residual, skip
from resnet_lib.experiments.residual.gradients import draw_front as draw_gradients
from resnet_lib.experiments.skip.reconstruction import draw_front as draw_gains
from resnet_lib.study import Experiment

SIDE, GAP = 15, 4  # of a claim's square in the picture, in pixels
COLOURS = {
    "yes": "#0072b2",
    "yes, if": "#e69f00",
    "no": "#d55e00",
    "cannot tell": "#8c8c8c",
    "not yet tested": "#d0d0d0",
}


@dataclass(frozen=True)
class Finding:
    """One of the records' results that a reader would not have guessed, in a sentence with its numbers."""

    chapter: str
    experiment: Experiment
    say: Callable[[dict[str, stats.Estimate]], str]  # from the chapter's estimates, by measure
    figure: Callable | None = None  # in place of the experiment's own


def _gradient(e) -> str:
    he = page.change(e["gradients/he_init_gain"], "it helps by", "it hurts by", "it changes nothing that shows")
    return (
        "**An addition saves the gradient of a badly initialised network, and need not help a good one.** "
        f"Under PyTorch's default weights it brings the first unit's gradient {e['gradients/default_init_gain']} "
        f"nearer to the last one's; under He's weights {he}."
    )


def _skips(e) -> str:
    mirrored = page.trend(e["reconstruction/mirror_psnr_gain"], "still gain", "lose", "gain nothing that shows")
    return (
        "**A U-Net's skips carry where things are.** "
        f"At equal parameters they gain {e['reconstruction/psnr_gain']} of fidelity; where the picture must come out "
        f"mirrored they {mirrored}: {e['reconstruction/mirror_psnr_gain']}."
    )


def _statistics(e) -> str:
    return (
        "**Batch norm's averages break on flat pictures, and the pictures' own statistics repair it.** "
        f"At a quarter of the contrast a network with batch norm loses {e['changed_pictures/lost_to_flatness']}; with "
        f"statistics taken from those pictures it regains {e['changed_pictures/own_gain_contrast_025']}."
    )


def _longer(e) -> str:
    longer = page.change(e["time/longer_gain"], "gains", "loses", "makes no clear difference")
    return (
        "**Spend time on augmentation, not on more epochs.** "
        f"Training longer without it {longer}; in the same time crop and flip gain {e['time/gain_at_equal_time']}."
    )


def _depth(e) -> str:
    deep = page.change(e["degradation/residual_change"], "rises by", "falls by", "does not clearly change")
    return (
        "**Plain networks get worse with depth even on what they train on.** "
        f"From the middle depth to the deepest their training error rises by {e['degradation/plain_change']}; with the "
        f"input added back it {deep}."
    )


FINDINGS = (
    Finding("residual", residual.GRADIENTS, _gradient, draw_gradients),
    Finding("skip", skip.RECONSTRUCTION, _skips, draw_gains),
    Finding("batch_norm", batch_norm.CHANGED_PICTURES, _statistics),
    Finding("augmentation", augmentation.LONGER, _longer),
    Finding("residual", residual.DEGRADATION, _depth),
)


def counts(rows: list[dict]) -> str:
    """How many claims have which verdict, in words."""
    number = {word: sum(row["verdict"] == word for row in rows) for word in claims.WORDS}
    return ", ".join(f"{count} {word}" for word, count in number.items() if count)


def strip(rows: list[dict]) -> str:
    """All claims as HTML, a small link each, coloured by verdict; hover and focus give the claim and its reason."""
    parts = []
    for section in dict.fromkeys(row["section"] for row in rows):
        links = []
        for row in (r for r in rows if r["section"] == section):
            told = html.escape(f"{row['claim']} {row['verdict'].capitalize()}: {row['because']}.", quote=True)
            where = (
                f'href="chapters/{row["chapter"]}.html#{row["id"]}"' if row["effects"] else 'tabindex="0" role="img"'
            )
            look = f'class="verdict-square {verdicts.style(row["verdict"])}"'
            links.append(f'<a {where} {look} data-told="{told}" aria-label="{told}"></a>')
        parts.append(f'<span class="verdict-group"><small>{html.escape(section)}</small> {"".join(links)}</span>')
    keys = "".join(
        f'<span class="verdict-key"><i class="verdict-square {verdicts.style(word)}"></i> '
        f"{sum(row['verdict'] == word for row in rows)} {word}</span>"
        for word in claims.WORDS
    )
    return f'<div class="verdict-strip">{"".join(parts)}</div>\n<p class="verdict-keys">{keys}</p>'


def picture(rows: list[dict]) -> str:
    """The same as an SVG, for where no style sheet reaches."""
    sections = list(dict.fromkeys(row["section"] for row in rows))
    name_width, step = 330, SIDE + GAP
    most = max(sum(row["section"] == section for row in rows) for section in sections)
    width, height = name_width + most * step + GAP, (len(sections) + 2) * (step + 4)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12" role="img"><title>{html.escape(counts(rows))}</title>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for line, section in enumerate(sections):
        top = line * (step + 4) + GAP
        parts.append(f'<text x="{GAP}" y="{top + SIDE - 3}">{html.escape(section)}</text>')
        for place, row in enumerate(r for r in rows if r["section"] == section):
            square = f'<rect x="{name_width + place * step}" y="{top}" width="{SIDE}" height="{SIDE}" rx="2" '
            told = html.escape(f"{row['claim']} {row['verdict']}")
            parts.append(f'{square}fill="{COLOURS[row["verdict"]]}"><title>{told}</title></rect>')
    x, top = GAP, len(sections) * (step + 4) + step
    for word, colour in COLOURS.items():
        said = f"{sum(row['verdict'] == word for row in rows)} {word}"
        parts.append(f'<rect x="{x}" y="{top - SIDE + 3}" width="{SIDE}" height="{SIDE}" rx="2" fill="{colour}"/>')
        parts.append(f'<text x="{x + step}" y="{top}">{said}</text>')
        x += step + 7 * len(said) + 2 * GAP
    return "\n".join([*parts, "</svg>", ""])


def write_tests(folder: Path, ledger: list[dict]) -> None:
    """Every test of the ledger's claims, what it asks and how it came out, as ledger.csv and ledger.json."""
    named = ("id", "claim", "verdict")
    rows = [{name: row[name] for name in named} | test for row in ledger for test in row["tests"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ledger.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8")
    with open(folder / "ledger.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def sentences() -> list[str]:
    """Every finding whose records are there, in words."""
    found = {one.chapter: claims.evidence(records.published(one.chapter)) for one in FINDINGS}
    return [one.say(found[one.chapter]) for one in FINDINGS]


def pictured(shown: int = 3) -> str:
    """The first findings as HTML: a small picture each, its sentence, and the way to its chapter."""
    parts = []
    for one in FINDINGS[:shown]:
        found = records.published(one.chapter)
        record = records.strongest(found)[one.experiment.name]
        with plots.captured() as made:
            (one.figure or one.experiment.figure)(record.rows, study.settings_of(one.experiment, record))
        words = f"{one.say(claims.evidence(found))} [How it was measured](chapters/{one.chapter}.html)."
        parts.append(page.figure(made[-1], one.experiment.alt, words).html)
    return f'<div class="findings">{"".join(parts)}</div>'
