"""A record survives the disk whole, says when its recipe has changed, and only then."""

import ast
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from resnet_lib import records, stats
from tests.conftest import cell, room_for, write_notebook


def study(depth):
    """A docstring."""
    return helper(depth) + 1  # a comment


def helper(depth):
    return 2 * depth


RECORD = records.Record(
    chapter="residual",
    experiment="gradients",
    profile="smoke",
    config={"depths": [8, 20], "rate": 0.1},
    data={"name": "digits", "fingerprint": "abc"},
    seeds=[0, 1],
    rows=[{"seed": 0, "error": 0.25}, {"seed": 1, "error": 0.5, "note": 'é|"\n'}],
    estimates={"gain": stats.interval([1.0, 2.0]).as_dict()},
    code=records.code_of(study),
    environment=records.environment({"device": "cpu"}),
    wall_s=1.5,
    notes=["none"],
)


def test_a_record_survives_the_disk(tmp_path):
    path = records.save(RECORD, tmp_path)
    assert path == tmp_path / "residual" / "gradients.smoke.json"
    assert records.load(path) == RECORD
    assert stats.Estimate(**records.load(path).estimates["gain"]) == stats.interval([1.0, 2.0])
    empty = replace(RECORD, rows=[])
    assert records.load(records.save(empty, tmp_path)) == empty


def test_rows_stand_on_a_line_each_with_six_figures(tmp_path):
    path = records.save(replace(RECORD, rows=[{"a": 1 / 3, "n": 1234567}, {"a": 1e-9}]), tmp_path)
    lines = path.read_text().splitlines()
    assert '  {"a": 0.333333, "n": 1234567},' in lines and '  {"a": 1e-09}' in lines


def test_saving_again_replaces_and_leaves_nothing_beside(tmp_path):
    records.save(RECORD, tmp_path)
    path = records.save(replace(RECORD, wall_s=9.0), tmp_path)
    assert records.load(path).wall_s == 9.0
    assert list(path.parent.iterdir()) == [path]


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = records.save(RECORD, tmp_path)

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        records.save(replace(RECORD, wall_s=9.0), tmp_path)
    assert records.load(path) == RECORD and list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_named_and_keeps_the_old_file(tmp_path):
    path = records.save(RECORD, tmp_path)
    with room_for(100), pytest.raises(OSError, match="the record cannot be written .*gradients.smoke.json"):
        records.save(replace(RECORD, wall_s=9.0), tmp_path)
    assert records.load(path) == RECORD and list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="the record cannot be written .*choose a folder .*file/residual/gradients"):
        records.save(RECORD, tmp_path / "file")
    if os.geteuid() == 0:
        return  # root may write anywhere
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="the record cannot be written"):
        records.save(RECORD, tmp_path / "locked")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"chapter": "x", "surprise": 1}'])
def test_a_file_that_is_no_record_is_named(tmp_path, content):
    path = tmp_path / "gradients.smoke.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"gradients\.smoke\.json is not a record"):
        records.load(path)


@pytest.mark.parametrize("name", ["chapter", "experiment", "profile"])
@pytest.mark.parametrize("value", ["", "../x", "a b", "a.b"])
def test_a_name_that_fits_no_file_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}='.*' must be letters, digits"):
        replace(RECORD, **{name: value})


def test_published_records_come_strongest_first(tmp_path):
    for profile in ("smoke", "mine", "full", "cpu", "colab"):
        records.save(replace(RECORD, profile=profile), tmp_path)
    records.save(replace(RECORD, experiment="tuning"), tmp_path)
    records.save(replace(RECORD, chapter="other"), tmp_path)
    found = records.published("residual", "gradients", folder=tmp_path)
    assert [record.profile for record in found] == ["full", "colab", "cpu", "smoke", "mine"]
    assert len(records.published("residual", folder=tmp_path)) == 6
    assert len(records.published(folder=tmp_path)) == 7 and records.published(folder=tmp_path / "none") == []


def test_the_key_is_chapter_experiment_config_and_data():
    same = replace(RECORD, rows=[], profile="cpu", wall_s=3.0, environment={}, code={})
    assert same.key == RECORD.key
    for change in ({"chapter": "b"}, {"experiment": "b"}, {"config": {}}, {"data": {"fingerprint": "b"}}):
        assert replace(RECORD, **change).key != RECORD.key


def test_a_chapter_makes_and_saves_its_records(tmp_path):
    chapter = records.Chapter("residual", "smoke", RECORD.data, {"device": "cpu"}, [0, 1], str(tmp_path))
    rows = [{"run_s": 2.0, "unit": 1}, {"run_s": 2.0, "unit": 2}, {"run_s": 3.0, "unit": 1}]
    made = chapter.record("gradients", rows, {"gain": stats.exact(3)}, [study], {"depths": [8]})
    assert made.wall_s == 5.0  # each run once, however many rows it made
    assert records.load(tmp_path / "residual" / "gradients.smoke.json") == made
    assert stats.Estimate(**made.estimates["gain"]) == stats.exact(3)
    replace(chapter, folder="").record("tuning", [], {}, [], {})
    assert len(list(tmp_path.rglob("*.json"))) == 1


def hashes(source):
    return records._hash_source(source)


BASE = '"""Doc."""\ndef f(x, *rest, k=None):\n    """Doc."""\n    return [x, None, ...], f"{x:>3}{k!r}", 1.0\n'


@pytest.mark.parametrize(
    "same",
    [
        BASE + "# a comment\n",
        BASE.replace("Doc.", "Another text."),
        BASE.replace('    """Doc."""\n', ""),
        BASE.replace("    return [x, None, ...], ", "    return [\n        x,\n        None, ...\n    ], "),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(same):
    assert hashes(same) == hashes(BASE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1.0", "1"),
        ("1.0", "2.0"),
        ("None, ...", "..."),
        ("k=None", "k=0"),
        ("k!r", "k"),
        (">3", ">4"),
        ("*rest", "*all"),
        ("[x, None, ...]", "(x, None, ...)"),
        ("return", "yield"),
    ],
)
def test_everything_else_counts(old, new):
    assert old in BASE and hashes(BASE.replace(old, new)) != hashes(BASE)


def test_the_hash_is_the_same_on_every_python():
    # known by hand from the form that _dump gives, which no version of Python decides
    tree = ast.parse("def f(x):\n    return x")
    form = (
        "Module(body=[FunctionDef(name='f',args=arguments(args=[arg(arg='x')]),"
        "body=[Return(value=Name(id='x',ctx=Load()))])])"
    )
    assert records._dump(tree) == form
    assert records._hash_source("def f(x):\n    return x") == records.digest(form)


def test_a_notebooks_functions_hash_as_the_kernels_do(tmp_path):
    source = Path(__file__).read_text()
    wanted = "".join(
        ast.get_source_segment(source, node) + "\n\n\n"
        for node in ast.parse(source).body
        if getattr(node, "name", "") in ("study", "helper")
    )
    decorated = "import functools\n\n@functools.cache\ndef kept(x):\n    return x\n"
    path = write_notebook(
        tmp_path / "a.ipynb",
        [
            cell("def text(): words", "m", kind="markdown"),
            cell("x = 1", "x"),
            cell(f"# what is measured\n{wanted}y = 2", "y"),
            cell(decorated, "z"),
        ],
    )
    found = records.notebook_functions(path)
    assert set(found) == {"study", "helper", "kept"}
    assert {name: found[name] for name in ("study", "helper")} == records.code_of(study)["experiment"]
    assert found["kept"] == hashes(decorated.partition("\n\n")[2])


def test_the_code_of_a_function_covers_the_helpers_it_names():
    assert set(records.code_of(study)["experiment"]) == {"study", "helper"}
    assert set(records.code_of(helper)["experiment"]) == {"helper"}


def test_the_library_half_covers_the_modules_that_make_numbers():
    import resnet_lib.page  # noqa: F401
    import resnet_lib.probes  # noqa: F401

    library = records.code_of()["library"]
    assert {"probes.ridge", "stats.Estimate", "stats.np"} <= set(library)
    assert not {"page", "records", "plots", "claims", "verdicts", "parameters"} & {n.partition(".")[0] for n in library}


MODULE = '''"""A module."""
import math
from statistics import fmean, median as middle

LIMIT: int = 3
LOW, HIGH = 0, 1


def one(x):
    """Text."""
    return x + LIMIT  # why


class Two:
    half = 2
'''
NAMES = {"math", "fmean", "middle", "LIMIT", "LOW", "HIGH", "one", "Two"}


@pytest.fixture
def definitions_of(tmp_path, monkeypatch):
    """definitions() of a module with this text."""
    monkeypatch.setattr(records, "__file__", str(tmp_path / "records.py"))

    def read(text):
        (tmp_path / "made.py").write_text(text, encoding="utf-8")
        records.definitions.cache_clear()
        return records.definitions("made")

    yield read
    records.definitions.cache_clear()


def test_a_module_is_hashed_definition_by_definition(definitions_of):
    before = definitions_of(MODULE)
    assert set(before) == NAMES
    for old, new, changed in [
        ("x + LIMIT", "x - LIMIT", {"one"}),
        ("half = 2", "half = 3", {"Two"}),
        ("LIMIT: int = 3", "LIMIT: int = 4", {"LIMIT"}),
        ("0, 1", "0, 2", {"LOW", "HIGH"}),
        ("median as middle", "mode as middle", {"middle"}),
        ("from statistics", "from numpy", {"fmean", "middle"}),
        ("Text", "Words", set()),
        ("  # why", "", set()),
    ]:
        after = definitions_of(MODULE.replace(old, new))
        assert {name for name in NAMES if after[name] != before[name]} == changed, old


def test_what_is_added_to_the_library_makes_no_record_stale_and_what_is_taken_away_does(definitions_of):
    made = {f"made.{name}": h for name, h in definitions_of(MODULE).items()}
    record = replace(RECORD, code={"experiment": {}, "library": made})
    definitions_of(MODULE + "\n\ndef three():\n    return one(3)\n\nimport json\n")
    assert records.stale(record, {}) == []
    definitions_of(MODULE.replace("def one", "def uno"))
    assert records.stale(record, {}) == ["resnet_lib.made.one is gone"]


def test_a_record_is_stale_when_its_recipe_has_changed_and_only_then():
    now = records.code_of(study)["experiment"]
    assert records.stale(RECORD, now) == records.stale(RECORD, now, RECORD.config) == []
    assert records.stale(RECORD, now, {"depths": (8, 20), "rate": 0.1}) == []  # a tuple is JSON's list
    assert records.stale(RECORD, now | {"study": "0"}) == ["study() of the chapter has changed"]
    assert records.stale(RECORD, {"study": now["study"]}) == ["helper() is gone"]
    assert records.stale(RECORD, now, {"depths": [8], "rate": 0.1}) == ["the settings depths have changed"]
    assert records.stale(RECORD, now, {"depths": [8, 20], "new": 1}) == ["the settings new have changed"]
    other = replace(RECORD, code=RECORD.code | {"library": {"stats.paired": "0", "gone.at_all": "0"}})
    assert records.stale(other, now) == ["resnet_lib.stats.paired has changed", "resnet_lib.gone.at_all is gone"]


def test_the_environment_names_machine_versions_and_date():
    found = records.environment({"device": "cpu"})
    assert found["device"] == {"device": "cpu"} and found["python"].count(".") == 2
    assert {"torch", "numpy"} <= set(found["packages"]) and len(found["date"]) == 10
    json.dumps(found)


def test_the_cache_is_where_the_reader_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("RESNET_LIB_CACHE", raising=False)
    assert records.cache_folder() == tmp_path / "resnet_lib"
    monkeypatch.setenv("RESNET_LIB_CACHE", "~/mine")
    assert records.cache_folder() == Path.home() / "mine"


def test_the_root_is_the_checkout():
    assert records.project_root() == Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("seeds", [[], [0]])
def test_a_chapter_of_fewer_than_two_seeds_is_refused(seeds):
    with pytest.raises(ValueError, match=rf"{len(seeds)} seed\(s\): an interval needs at least 2"):
        records.Chapter("x", "smoke", {}, {}, seeds)


def test_a_chapter_finds_out_at_once_that_its_records_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="the record cannot be written .*file"):
        records.Chapter("x", "smoke", {}, {}, [0, 1], str(tmp_path / "file"))
    records.Chapter("x", "smoke", {}, {}, [0, 1], str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []


def test_an_amended_definition_leaves_records_as_they_were_and_only_from_the_version_it_names():
    for (name, before, after), why in records.AMENDMENTS.items():
        module, _, definition = name.partition(".")
        assert records.definitions(module)[definition] == after, f"{name} has changed again: the amendment is void"
        assert why and before != after
        for hashed, reasons in ((before, []), ("0", [f"resnet_lib.{name} has changed"])):
            record = replace(RECORD, code={"experiment": {}, "library": {name: hashed}})
            assert records.stale(record, {}) == reasons
    assert not [r for r in records.published() if '"precision": "fp16"' in json.dumps(r.config)]
