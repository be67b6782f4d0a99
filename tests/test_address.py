"""One command sets the repository's address in every file that holds it, and in no other."""

import shutil

import pytest

from tests.conftest import ROOT
from tools import address, notebooks


@pytest.fixture
def fork(tmp_path):
    for holder in address.HOLDERS:
        for path in ROOT.glob(holder):
            target = tmp_path / path.relative_to(ROOT)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
    return tmp_path


def test_after_a_change_no_file_holds_the_old_address_and_the_notebooks_are_clean(fork):
    old, new = notebooks.repository(fork), "https://github.com/someone/a-fork.of"
    changed = address.change(fork, new + ".git")
    assert {"_config.yml", "pyproject.toml", "CITATION.cff"} < set(changed)
    assert {f"chapters/{path.name}" for path in fork.glob("chapters/*.ipynb")} <= set(changed)
    assert notebooks.repository(fork) == new
    for path in fork.rglob("*"):
        assert not path.is_file() or old not in path.read_text("utf-8")
    assert notebooks.problems(fork / "chapters" / "ledger.ipynb", new) == []
    assert address.change(fork, new) == []
    address.change(fork, old)
    for name in changed:
        assert (fork / name).read_bytes() == (ROOT / name).read_bytes()


@pytest.mark.parametrize(
    "wrong", ["github.com/a/b", "https://github.com/a", "https://example.org/a/b", "https://github.com/a/b/c"]
)
def test_what_is_no_address_is_refused_and_nothing_is_written(fork, wrong, capsys):
    before = (fork / "_config.yml").read_bytes()
    with pytest.raises(ValueError, match="is no address; one looks like"):
        address.change(fork, wrong)
    assert (fork / "_config.yml").read_bytes() == before
    assert address.main([wrong]) == 2 and "is no address" in capsys.readouterr().err
