"""Write what the records say into README.md, and its picture of all claims, so that no number there is typed.

python -m tools.readme [--check]
"""

import sys
from pathlib import Path

from resnet_lib import ledger
from resnet_lib.paths import write_atomically
from tools import front
from tools.chapters import ROOT

OPEN, CLOSE = "<!-- findings:", "<!-- /findings -->"
PICTURE = ROOT / "images" / "ledger.svg"


def with_findings(text: str, rows: list[dict]) -> str:
    """README.md's text with its block of counts and findings made anew from claims.yml and records/."""
    before, _, rest = text.partition(OPEN)
    mark, _, rest = rest.partition("\n")
    _, found, after = rest.partition(CLOSE)
    if not found:
        raise ValueError(f"README.md must hold the lines {OPEN} … --> and {CLOSE}")
    lines = [f"{len(rows)} claims: {front.counts(rows)}.", "", *(f"- {sentence}" for sentence in front.sentences())]
    return f"{before}{OPEN}{mark}\n\n" + "\n".join(lines) + f"\n\n{CLOSE}{after}"


def made() -> dict[Path, str]:
    """What the files should hold, by path."""
    rows, path = ledger.rows(), ROOT / "README.md"
    return {path: with_findings(path.read_text("utf-8"), rows), PICTURE: front.picture(rows)}


def main() -> int:
    files = made()
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text("utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.name} does not show what the records say: run python -m tools.readme", file=sys.stderr)
        return int(bool(stale))
    for path, text in files.items():
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
