"""Set the repository's address, which Colab's buttons and a chapter opened alone need, in every file that holds it.

python -m tools.address https://github.com/you/your-fork
"""

import re
import sys
from pathlib import Path

from resnet_lib.paths import write_atomically
from tools.chapters import ROOT, command
from tools.notebooks import repository

HOLDERS = ("_config.yml", "pyproject.toml", "CITATION.cff", "*.md", "chapters/*.ipynb")
PATTERN = re.compile(r"https://github\.com/[\w-]+/[\w.-]+")


def change(root: Path, new: str) -> list[str]:
    """Write the new address in place of the old one; gives the names of the files that changed.

    Raises: ValueError for what is no address of a repository on GitHub, with nothing written.
    """
    new = new.removesuffix("/").removesuffix(".git")
    if not PATTERN.fullmatch(new):
        raise ValueError(f"{new!r} is no address; one looks like https://github.com/owner/name")
    old = re.compile(re.escape(repository(root)) + r"(?![\w-])")
    texts = {path: path.read_text("utf-8") for holder in HOLDERS for path in sorted(root.glob(holder))}
    changed = {
        path: old.sub(new, text) for path, text in texts.items() if old.search(text) and old.sub(new, text) != text
    }
    for path, text in changed.items():
        write_atomically(path, text)
    return [str(path.relative_to(root)) for path in changed]


def main(arguments: list[str] | None = None) -> int:
    parser = command("tools.address", __doc__)
    parser.add_argument("address", help="https://github.com/owner/name")
    try:
        changed = change(ROOT, parser.parse_args(arguments).address)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(changed) or "every file holds this address already")
    return 0


if __name__ == "__main__":
    sys.exit(main())
