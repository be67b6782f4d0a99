"""Executing chapters: parameters are checked first, failures stay apart, nothing is half-written."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from resnet_lib.parameters import declared_in
from tests.conftest import ROOT, cell, chapter, write_notebook
from tools import chapters, plan, script


def run(root, *arguments, profile="smoke"):
    """`python -m tools.execute` as a user calls it, from a folder that is not the book's."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tools.execute", "--root", str(root), "--profile", profile, *arguments]
    return subprocess.run(command, cwd=root.parent, env=environment, capture_output=True, text=True, timeout=120)


def outputs(path):
    return [out for one in json.loads(path.read_text())["cells"] for out in one.get("outputs", [])]


def test_finished_chapters_are_kept_and_a_failing_one_leaves_its_traceback(book):
    root = book(
        good=["print(seeds, name)"],
        bad=["print('so far')", "1 / 0", "print('never')"],
        dead=["import os; os._exit(1)"],
        slow=["import time", "time.sleep(60)"],
    )
    ran = run(root, "--jobs", "2", "--set", "seeds=5", "--timeout", "3")
    assert ran.returncode == 1
    done = root / "_build" / "executed" / "smoke"
    assert "5 x" in "".join(outputs(done / "good.ipynb")[0]["text"])
    partial = outputs(done / "bad.failed.ipynb")
    assert partial[0]["text"] in ("so far\n", ["so far\n"])
    assert partial[-1]["ename"] == "ZeroDivisionError"
    assert outputs(done / "dead.failed.ipynb")[-1]["ename"] == "DeadKernelError"
    assert outputs(done / "slow.failed.ipynb")[-1]["ename"] == "CellTimeoutError"
    for words in (
        "bad failed: ZeroDivisionError: division by zero in cell 'work-1'",
        "dead died: DeadKernelError",
        "slow timeout: CellTimeoutError: the cell ran longer than 3 s",
    ):
        assert words in ran.stdout
    names = sorted(path.name for path in done.iterdir())
    assert names == ["bad.failed.ipynb", "dead.failed.ipynb", "good.ipynb", "good.json", "slow.failed.ipynb"]

    again = run(root, "good", "--set", "seeds=5")
    assert again.returncode == 0
    assert "unchanged" in again.stdout
    changed = run(root, "good", "--set", "seeds=6")
    assert "starts (parameters)" in changed.stdout


def test_an_interrupt_kills_the_children_keeps_what_is_finished_and_leaves_nothing_half_written(book):
    root = book(
        quick=["print(1)"], slow=["import os, time", "open('pid', 'w').write(str(os.getpid()))", "time.sleep(60)"]
    )
    command = [sys.executable, "-m", "tools.execute", "--root", str(root), "--jobs", "2"]
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background inherits deafness
    try:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, heard)
    done, pid = root / "_build" / "executed" / "smoke", root / "chapters" / "pid"
    for _ in range(600):
        if pid.exists() and (done / "quick.json").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped" in printed
    assert "same command goes on" in errors
    assert sorted(path.name for path in done.iterdir()) == ["quick.ipynb", "quick.json"]
    assert not alive(int(pid.read_text()))


def alive(pid):
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (("seed", "5"), "no parameter 'seed'"),
        (("seeds", "many"), "must be of type int"),
        (("seeds", "true"), "must be of type int"),
        (("seeds", "1.5"), "must be of type int"),
        (("sizes", "[1, x]"), "must be of type int"),
    ],
)
def test_an_undeclared_parameter_or_a_wrong_type_is_refused_naming_the_declared_ones(book, setting, words):
    root = book(one=["1"])
    with pytest.raises(ValueError, match=words) as refused:
        plan.plan(root, [], "smoke", [setting])
    assert "seeds (int), rate (float), name (str), sizes (list[int])" in str(refused.value)


def test_values_of_the_declared_types_are_accepted_as_papermill_will_pass_them(book):
    pairs = [("seeds", "5"), ("rate", "1"), ("name", "12"), ("sizes", "[3, 4]")]
    (job,) = plan.plan(book(one=["1"]), ["chapters/one.ipynb"], "smoke", pairs)
    assert job.parameters == {"seeds": 5, "rate": 1, "name": "12", "sizes": [3, 4]}


def test_an_unknown_chapter_or_profile_is_refused_naming_those_there_are(book):
    root = book(one=["1"], two=["2"])
    (root / "profiles" / "full").mkdir(parents=True)
    with pytest.raises(ValueError, match="'three'.*one, two"):
        plan.plan(root, ["three"], "smoke", [])
    with pytest.raises(ValueError, match="'ful'.*smoke, full"):
        plan.plan(root, [], "ful", [])
    with pytest.raises(ValueError, match="no file for chapter 'one'"):
        plan.plan(root, [], "full", [])
    assert run(root, "three").returncode == 2


def test_a_profile_sets_parameters_and_where_records_go(book):
    root = book(one=["1"])
    source = root / "chapters" / "one.ipynb"
    write_notebook(source, [cell('seeds: int = 3  # n\nrecords_to: str = ""  # folder', "parameters", "parameters")])
    (root / "profiles" / "full").mkdir(parents=True)
    (root / "profiles" / "full" / "one.yml").write_text("seeds: 5  # published\n")
    (job,) = plan.plan(root, [], "full", [])
    assert job.parameters == {"seeds": 5, "records_to": str(root / "records")}
    assert plan.plan(root, [], "full", [], records=False)[0].parameters == {"seeds": 5}
    assert plan.plan(root, [], "full", [("records_to", "")])[0].parameters["records_to"] == ""


def test_the_key_covers_code_library_claims_records_parameters_and_the_data_named_but_not_prose(book, tmp_path):
    root = book(one=["print(1)"])
    data = tmp_path / "data"
    data.mkdir()

    def key(settings=(("name", str(data)),)):
        (job,) = plan.plan(root, [], "smoke", list(settings))
        return plan.ingredients_of(job, root, "smoke")

    def changed_by(action):
        before = key()
        action()
        after = key()
        return [name for name in before if before[name] != after[name]]

    source = root / "chapters" / "one.ipynb"
    records = root / "records" / "one"
    records.mkdir(parents=True)
    prose = source.read_text().replace("# One", "# Uno")
    assert changed_by(lambda: source.write_text(prose)) == []
    assert changed_by(lambda: source.write_text(prose.replace("print(1)", "print(2)"))) == ["code"]
    assert changed_by(lambda: (root / "resnet_lib" / "stub.py").write_text("VALUE = 2\n")) == ["library"]
    assert changed_by(lambda: (root / "claims.yml").write_text("[{}]\n")) == ["claims"]
    assert changed_by(lambda: (records / "a.full.json").write_text("{}")) == ["records"]
    assert changed_by(lambda: (data / "new.png").write_text("")) == ["data"]
    (data / "cats").mkdir()
    assert changed_by(lambda: (data / "cats" / "1.png").write_text("a")) == [
        "data"
    ]  # which leaves the folder's own time
    assert changed_by(lambda: (data / "cats" / "1.png").write_text("ab")) == ["data"]
    assert changed_by((data / "cats" / "1.png").unlink) == ["data"]
    assert key()["parameters"] != key([("seeds", "4")])["parameters"]


def test_what_a_chapter_records_itself_does_not_outdate_it_but_outdates_the_chapter_that_shows_it(book):
    root = book(one=["1"], ledger=["1"])
    write_notebook(
        root / "chapters" / "one.ipynb", [cell('records_to: str = ""  # folder', "parameters", "parameters")]
    )
    (root / "records" / "one").mkdir(parents=True)

    def keys():
        jobs = [plan.Job(root / "chapters" / f"{name}.ipynb", root / name, {}) for name in ("one", "ledger")]
        return [plan.ingredients_of(job, root, "full")["records"] for job in jobs]

    one, ledger = keys()
    (root / "records" / "one" / "a.full.json").write_text("{}")
    assert keys()[0] == one
    assert keys()[1] != ledger
    (root / "records" / "one" / "a.cpu.json").write_text("{}")
    assert keys()[0] != one


def test_a_profile_reads_the_same_here_and_in_papermill(tmp_path):
    import yaml

    text = (
        "# a comment\nseeds: 5\nrate: 1.0e-3  # per step\nbig: 50_000\nname: 'a # b'\nflag: true\n"
        "nothing: null\nsizes: [8, 20]\nwords: [plain, residual]\nnested: [[1, 2], [3]]\nempty: []\n"
        "bare: a word\nnegative: -0.5\n"
    )
    path = tmp_path / "x.yml"
    path.write_text(text)
    assert chapters.read_profile(path) == yaml.safe_load(text)
    for committed in (ROOT / "profiles").glob("*/*.yml"):
        assert chapters.read_profile(committed) == yaml.safe_load(committed.read_text()), committed


@pytest.mark.parametrize("line", ["rate: 1e-3", "flag: yes", "a: 1\na: 2", "  nested: 1", "- item", "n: 010"])
def test_a_profile_line_that_yaml_readers_disagree_on_is_refused_with_its_line(tmp_path, line):
    path = tmp_path / "x.yml"
    path.write_text(line)
    with pytest.raises(ValueError, match=r"x\.yml, line"):
        chapters.read_profile(path)


def test_every_profile_sets_only_parameters_that_its_chapter_declares():
    for path in (ROOT / "profiles").glob("*/*.yml"):
        declared = declared_in(chapters.read(ROOT / "chapters" / f"{path.stem}.ipynb"))
        chapters.check(chapters.read_profile(path), declared, f"{path}")


def test_a_chapter_runs_as_a_script_without_jupyter_with_parameters_and_without_figures(tmp_path):
    path = chapter(tmp_path / "one.ipynb", "import dataclasses\ntotal = seeds + 1", "print('total', total)")
    notebook = json.loads(path.read_text())
    notebook["cells"].append(cell("raise SystemError('a figure')", "figure", "present"))
    path.write_text(json.dumps(notebook))
    absent = ("papermill", "nbformat", "yaml", "IPython", "rich", "torch")
    blocked = f"import sys\nfor name in {absent}: sys.modules[name] = None\n"
    code = f"{blocked}sys.argv = ['x', {str(path)!r}, '-p', 'seeds', '7', '--only-measurements']\n"
    code += "import runpy; runpy.run_module('tools.script', run_name='__main__')"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "total 8" in ran.stdout
    assert "one 3/3 work-1" in ran.stderr


def test_a_script_names_the_cell_that_failed_and_refuses_bad_parameters(tmp_path, capsys):
    path = chapter(tmp_path / "one.ipynb", "def half(x):\n    return x / 0\nhalf(1)")
    assert script.main([str(path)]) == 1
    printed = capsys.readouterr().err
    assert "return x / 0" in printed
    assert "in cell 'work-0' (2 of 2)" in printed
    assert script.main([str(path), "-p", "seed", "1"]) == 2
    assert "no parameter 'seed'" in capsys.readouterr().err


def test_paths_of_a_command_line_are_relative_to_where_the_user_stands(tmp_path, monkeypatch):
    source = 'dataset: str = "digits"\nrecords_to: str = ""'
    known = declared_in({"cells": [cell(source, "parameters", "parameters")]})
    monkeypatch.chdir(tmp_path)
    for name in ("pictures.zip", "digits"):
        (tmp_path / name).write_text("")
    parse = lambda **values: chapters.parse_settings(list(values.items()), known)  # noqa: E731
    whole = {"dataset": str(tmp_path / "pictures.zip"), "records_to": str(tmp_path / "mine")}
    assert (
        parse(dataset="pictures.zip", records_to="mine") == parse(dataset="./pictures.zip", records_to="mine") == whole
    )
    assert parse(dataset="digits", records_to="") == {"dataset": "digits", "records_to": ""}
    assert parse(dataset="./digits")["dataset"] == str(tmp_path / "digits"), "the file, and not the known data"
    assert parse(dataset="cifar10")["dataset"] == "cifar10"
