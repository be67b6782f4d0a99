"""Write the published verdicts into README.md, so that no number there is typed.

python -m tools.readme [--check]
"""

import sys

from resnet_lib import verdicts
from resnet_lib.paths import write_atomically
from tools.chapters import ROOT

OPEN, CLOSE = "<!-- verdicts:", "<!-- /verdicts -->"


def with_verdicts(text: str) -> str:
    """README.md's text with the block of published verdicts made anew from claims.yml and records/."""
    before, _, rest = text.partition(OPEN)
    mark, _, rest = rest.partition("\n")
    _, found, after = rest.partition(CLOSE)
    if not found:
        raise ValueError(f"README.md must hold the lines {OPEN} … --> and {CLOSE}")
    rows = [row for row in verdicts.ledger() if row["verdict"] != "not yet tested"]
    table = verdicts.table(rows) if rows else "None yet: `records/` is empty."
    return f"{before}{OPEN}{mark}\n\n{table}\n\n{CLOSE}{after}"


def main() -> int:
    path = ROOT / "README.md"
    text = path.read_text("utf-8")
    made = with_verdicts(text)
    if "--check" in sys.argv[1:]:
        if made != text:
            print("README.md does not show the published verdicts: run python -m tools.readme", file=sys.stderr)
        return int(made != text)
    write_atomically(path, made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
