"""A chapter alone in an empty folder fetches the library and leaves the scientific packages as they are."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import ROOT, cell
from tools import chapters, notebooks

PROBE = """
import importlib.metadata, json, pathlib
import resnet_lib, resnet_lib.records, resnet_lib.claims
print(json.dumps({
    "library": resnet_lib.__file__,
    "claims": len(resnet_lib.claims.load()),
    "records": sorted(str(path.relative_to(resnet_lib.records.project_root()))
                      for path in resnet_lib.records.project_root().glob("records/**/*.json")),
    "versions": {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "numpy")},
}))
"""
EXECUTE = """
import nbclient, nbformat
notebook = nbformat.read("chapter.ipynb", as_version=4)
nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
print(notebook.cells[-1].outputs[0].text)
"""


@pytest.fixture
def lonely_python(tmp_path):
    """A Python with this environment's packages and without resnet_lib, as a hosted notebook has them."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    own = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    links = tmp_path / "packages"
    links.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "resnet_lib" not in entry.name and entry.name != "__pycache__" and entry.suffix != ".pth":
            (links / entry.name).symlink_to(entry)
    (own / "packages.pth").write_text(f"{links}\n")
    return tmp_path / "venv" / "bin" / "python"


@pytest.fixture(scope="session")
def address(tmp_path_factory):
    """A local git repository of this checkout as it stands, uncommitted changes too."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("pyproject.toml", "claims.yml", "resnet_lib", "records"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder)
    git = ["git", "-c", "user.name=book", "-c", "user.email=book@localhost", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "as it stands"]):
        subprocess.run(git + command, cwd=folder, check=True)
    return f"git+{folder.as_uri()}"


@pytest.mark.parametrize("path", chapters.toc_chapters(ROOT), ids=lambda path: path.stem)
def test_a_chapter_alone_installs_the_library_with_its_records_and_touches_nothing_else(
    path, tmp_path, lonely_python, address
):
    folder = tmp_path / "empty"
    folder.mkdir()
    notebook = chapters.read(path)
    cells = chapters.code_cells(notebook)
    last = next((i for i, one in enumerate(cells) if "parameters" in chapters.tags(one)), 0)
    notebook["cells"] = [*cells[: last + 1], cell(PROBE, "probe")]
    (folder / "chapter.ipynb").write_text(notebooks.canonical(notebook))
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "JUPYTER"))
    }
    environment |= {
        "RESNET_LIB_SOURCE": address,
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this one upside down: 0 switches isolation off
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }

    def python(code):
        ran = subprocess.run([lonely_python, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
        return ran.returncode, ran.stdout, ran.stderr

    assert "No module named 'resnet_lib'" in python("import resnet_lib")[2]
    own = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    before = {entry.name for entry in own.iterdir()}
    code, printed, errors = python(EXECUTE)
    assert code == 0, errors
    facts = json.loads(printed)
    assert Path(facts["library"]).parent == own / "resnet_lib"
    assert {entry.name.partition("-")[0] for entry in own.iterdir() if entry.name not in before} == {"resnet_lib"}
    from importlib import metadata

    assert facts["versions"] == {name: metadata.version(name) for name in facts["versions"]}
    assert facts["claims"] > 0
    assert facts["records"] == sorted(str(one.relative_to(ROOT)) for one in ROOT.glob("records/**/*.json"))


def test_in_a_checkout_or_installed_the_first_cell_does_nothing(tmp_path, lonely_python):
    chapter_folder = tmp_path / "checkout" / "chapters"
    chapter_folder.mkdir(parents=True)
    (tmp_path / "checkout" / "resnet_lib").mkdir()
    (tmp_path / "checkout" / "resnet_lib" / "__init__.py").write_text("where = 'checkout'\n")
    code = (
        notebooks.BOOTSTRAP.replace("subprocess.run(", "raise SystemError(")
        + "\nimport resnet_lib; print(resnet_lib.where)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for folder in (chapter_folder, tmp_path / "checkout"):
        ran = subprocess.run([lonely_python, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
        assert ran.stdout == "checkout\n", ran.stderr
