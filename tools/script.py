"""Run a chapter's code cells as a plain script, where there is no Jupyter (a bare GPU machine).

python -m tools.script chapters/residual.ipynb -f profiles/full/residual.yml -p records_to records
"""

import linecache
import os
import sys
import time
import traceback
import types
from pathlib import Path

from resnet_lib.parameters import declared_in
from tools.chapters import ROOT, check, code_cells, command, parse_settings, read, read_profile, tags


def run(path: Path, parameters: dict, only_measurements: bool = False, log=sys.stderr) -> dict:
    """Execute the code cells in one namespace, as `__main__`, and return it.

    Args:    parameters: checked values that override the defaults of the cell tagged `parameters`.
             only_measurements: leave out the cells tagged `present` (figures and tables).
    Raises:  whatever a cell raises, with a note that names the cell.
    """
    notebook = read(path)
    check(parameters, declared_in(notebook), path.stem)
    cells = [cell for cell in code_cells(notebook) if not (only_measurements and "present" in tags(cell))]
    main, before = types.ModuleType("__main__"), sys.modules["__main__"]
    sys.modules["__main__"] = main  # dataclasses and pickle look the namespace up by its name
    start = time.perf_counter()
    try:
        for number, cell in enumerate(cells, 1):
            name = cell.get("id", str(number))
            print(
                f"[{time.perf_counter() - start:8.1f} s] {path.stem} {number}/{len(cells)} {name}", file=log, flush=True
            )
            label = f"<{path.name} cell {name}>"
            source = cell["source"]
            linecache.cache[label] = (len(source), None, source.splitlines(keepends=True), label)
            try:
                exec(compile(source, label, "exec"), main.__dict__)
            except BaseException as error:
                error.add_note(f"in cell {name!r} ({number} of {len(cells)}) of {path}")
                raise
            if "parameters" in tags(cell):
                main.__dict__.update(parameters)
    finally:
        sys.modules["__main__"] = before
    print(f"[{time.perf_counter() - start:8.1f} s] {path.stem} done", file=log, flush=True)
    return main.__dict__


def main(arguments: list[str] | None = None) -> int:
    parser = command("tools.script", __doc__)
    parser.add_argument("chapter", type=Path)
    parser.add_argument("-f", "--file", type=Path, help="a file of parameters, profiles/<profile>/<chapter>.yml")
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--only-measurements", action="store_true", help="skip the cells tagged `present`")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("MPLBACKEND", "Agg")
    try:
        parameters = read_profile(options.file) if options.file else {}
        known = declared_in(read(options.chapter))
        parameters |= parse_settings(options.parameter, known)
        check(parameters, known, options.chapter.stem)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        run(options.chapter, parameters, options.only_measurements)
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
