"""Render the executed chapters as HTML with Jupyter Book, strictly and from clean.

python -m tools.render --profile smoke
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from importlib import metadata
from pathlib import Path

from tools.chapters import ROOT, code_cells, command, read, tags, toc_pages
from tools.front import pictured, strip, write_tests

MATHJAX = "3.2.2"
MATHJAX_PARTS = ("es5/tex-mml-chtml.js", "es5/output/chtml/fonts/", "es5/input/tex/extensions/", "LICENSE")
THEBE = re.compile(
    r'(?s)<script(?: type="text/x-thebe-config")?>(?:const THEBE_JS_URL|\s*\{\s*requestKernel).*?</script>\s*'
    r"|<(?:script|link)[^>]*sphinx-thebe\.(?:js|css)[^>]*>(?:</script>)?\s*"
)
FRONT = "<!-- front: all claims and the findings, from the records -->"
RENDERERS = ("jupyter-book", "sphinx", "sphinx-book-theme", "pydata-sphinx-theme", "myst-nb")


def with_outputs(source: Path, executed: Path) -> dict:
    """The chapter as it stands, with the outputs of its execution: an edit to prose needs no new run.

    Raises: FileNotFoundError where it was not executed, ValueError where its code has changed since.
    """
    if not executed.is_file():
        raise FileNotFoundError(f"{source.name} has not been executed: {executed} is missing (run tools.execute)")
    notebook, outputs = read(source), code_cells(read(executed))
    injected = [cell for cell in outputs if "injected-parameters" in tags(cell)]
    outputs = [cell for cell in outputs if "injected-parameters" not in tags(cell)]
    cells = code_cells(notebook)
    if [cell["source"] for cell in cells] != [cell["source"] for cell in outputs]:
        raise ValueError(f"the code of {source.name} has changed since it was executed (run tools.execute)")
    for cell, ran in zip(cells, outputs, strict=True):
        cell |= {"outputs": ran["outputs"], "execution_count": ran["execution_count"]}
    for cell in injected:
        cell["id"] = "injected-parameters"
        place = next(i for i, other in enumerate(notebook["cells"]) if "parameters" in tags(other)) + 1
        notebook["cells"].insert(place, cell)
    return notebook


def fetch_mathjax(cache: Path) -> Path | None:
    """The MathJax package from the npm registry, fetched once; None, with a warning, where npm can't."""
    archive = cache / f"mathjax-{MATHJAX}.tgz"
    if archive.is_file():
        return archive
    temporary = cache / "fetching"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        command = ["npm", "pack", f"mathjax@{MATHJAX}", "--silent"]
        subprocess.run(command, cwd=temporary, check=True, capture_output=True, text=True, timeout=120)
        os.replace(temporary / archive.name, archive)
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
        print(
            f"WARNING: no MathJax from npm ({' '.join(reason)}): the pages will load it from its public CDN, "
            "and show raw formulas without a network. Install npm and run again for pages that need none.",
            file=sys.stderr,
        )
        return None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return archive


def unpack_mathjax(archive: Path, folder: Path) -> None:
    """The parts that a page can load, 2 MB of 24, into folder/mathjax."""
    with tarfile.open(archive) as package:
        for member in package:
            name = member.name.removeprefix("package/")
            if member.isfile() and name.startswith(MATHJAX_PARTS):
                target = folder / "mathjax" / name.removeprefix("es5/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(package.extractfile(member).read())


def with_front(text: str, rows: list[dict]) -> str:
    """A page's text with what the records say where it asks for it, so that no number there is typed."""
    return text.replace(FRONT, f"{strip(rows)}\n\n{pictured()}") if FRONT in text else text


def assemble(root: Path, executed: Path, book: Path, mathjax: Path | None) -> None:
    """Everything that the pages are made of, in a folder that holds nothing else."""
    import yaml

    from resnet_lib import ledger

    rows = ledger.rows()
    shutil.rmtree(book, ignore_errors=True)
    for page in toc_pages(root):
        target = book / page.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        if page.suffix == ".ipynb":
            target.write_text(json.dumps(with_outputs(page, executed / page.name)), "utf-8")
        else:
            target.write_text(with_front(page.read_text("utf-8"), rows), "utf-8")
    shutil.copy(root / "_toc.yml", book)
    config = yaml.safe_load((root / "_config.yml").read_text("utf-8"))
    config["sphinx"].pop("local_extensions", None)  # it stops a build of notebooks without outputs
    for name in ("_static", "images"):
        if (root / name).is_dir():
            shutil.copytree(root / name, book / name)
    write_tests(book / "vendor", rows)
    if mathjax:
        unpack_mathjax(mathjax, book / "vendor")
    else:
        config["sphinx"]["config"].pop("mathjax_path", None)
    (book / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")


def key_of(book: Path) -> str:
    """One digest of everything that the pages are made of and made with."""
    parts = [sys.version, *(f"{name} {metadata.version(name)}" for name in RENDERERS)]
    parts += [Path(__file__).read_text("utf-8")]
    for path in sorted(book.rglob("*")):
        if path.is_file():
            parts += [str(path.relative_to(book)), hashlib.sha256(path.read_bytes()).hexdigest()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def build(book: Path, work: Path) -> Path:
    """Run Jupyter Book with every warning an error; return the folder of pages.

    Raises: RuntimeError after the output was shown, if it found anything wrong or left out a page.
    """
    shutil.rmtree(work, ignore_errors=True)
    jupyter_book = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command = [*jupyter_book, "build", "-W", "-n", "--keep-going", "--path-output", str(work), str(book)]
    ran = subprocess.run(
        command,
        env=os.environ | {"NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    html = work / "_build" / "html"
    if ran.returncode:
        print(ran.stdout, flush=True)
        warnings = [line for line in ran.stdout.splitlines() if "WARNING:" in line or "ERROR:" in line]
        raise RuntimeError("\n".join(["Jupyter Book refused the pages:", *warnings]))
    wanted = [page.relative_to(book).with_suffix(".html") for page in toc_pages(book)]
    if missing := [str(page) for page in wanted if not (html / page).is_file()]:
        print(ran.stdout, flush=True)
        raise RuntimeError(f"Jupyter Book left out {len(missing)} of {len(wanted)} pages: {', '.join(missing)}")
    return html


def without_thebe(html: Path) -> None:
    """Take Thebe's scripts, which no page uses, out of the pages: the theme loads them twice, and the second fails."""
    for page in html.rglob("*.html"):
        text = page.read_text("utf-8")
        plain = THEBE.sub("", text)
        if plain != text:
            page.write_text(plain, "utf-8")


def render(root: Path, profile: str) -> int:
    start = time.perf_counter()
    folder = root / "_build"
    book, work, html, stamp = folder / "book", folder / "rendering", folder / "html", folder / "rendered.txt"
    mathjax = fetch_mathjax(folder / "mathjax")
    try:
        assemble(root, folder / "executed" / profile, book, mathjax)
        key = key_of(book)
        fresh = html.is_dir() and stamp.is_file() and stamp.read_text() == key
        if not fresh:
            print(f"rendering {len(toc_pages(book))} pages …", flush=True)
            built = build(book, work)
            without_thebe(built)
            stamp.unlink(missing_ok=True)
            shutil.rmtree(html, ignore_errors=True)
            os.replace(built, html)
            stamp.write_text(key)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(work, ignore_errors=True)
    pages, seconds = len(toc_pages(book)), time.perf_counter() - start
    index = os.path.relpath(html / "index.html")
    print(
        f"{pages} pages {'unchanged' if fresh else 'rendered'} in {seconds:.1f} s. Open {index}\n"
        f"  {(html / 'index.html').as_uri()}"
    )
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = command("tools.render", __doc__)
    parser.add_argument("--profile", default="smoke", help="whose executed chapters to show (default: %(default)s)")
    parser.add_argument("--root", type=Path, default=ROOT, help="the book's folder (default: this checkout)")
    options = parser.parse_args(arguments)
    try:
        return render(options.root.resolve(), options.profile)
    except KeyboardInterrupt:
        print("stopped; the pages rendered before are as they were", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
