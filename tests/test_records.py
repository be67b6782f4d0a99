"""A record survives the disk whole, is named after its device, and gives back rows as they were measured."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from resnet_lib import paths, records, stats
from tests.conftest import room_for

CPU = {"device": "cpu", "name": "2 threads of A (R) CPU", "cpu": "A(R) CPU @ 2 GHz", "threads": 2}
RECORD = records.Record(
    chapter="residual",
    experiment="gradients",
    profile="smoke",
    settings={"depths": [8, 20], "rate": 0.1},
    data={"name": "digits", "fingerprint": "abc", "test": 10},
    rows=[{"seed": 0, "error": 0.25}, {"seed": 1, "error": 0.5, "note": 'é|"\n'}],
    estimates={"gain": stats.interval([1.0, 2.0]).as_dict()},
    code={"train.fit": "f" * 16},
    made=[records.environment(CPU)],
    rules={"gradients/gain": "a" * 16},
    wall_s=1.5,
    notes=["none"],
)


def test_a_record_survives_the_disk(tmp_path):
    path = records.save(RECORD, tmp_path)
    assert path == tmp_path / "residual" / "gradients.smoke.a-cpu-2-ghz.json"
    assert records.load(path) == RECORD
    assert stats.Estimate(**records.load(path).estimates["gain"]) == stats.interval([1.0, 2.0])
    empty = replace(RECORD, rows=[])
    assert records.load(records.save(empty, tmp_path)) == empty


def test_rows_stand_on_a_line_each(tmp_path):
    path = records.save(replace(RECORD, rows=[{"a": 0.5, "n": 1234567}, {"a": 1e-9}]), tmp_path)
    lines = path.read_text().splitlines()
    assert '  {"a": 0.5, "n": 1234567},' in lines and '  {"a": 1e-09}' in lines


def test_saving_again_replaces_and_leaves_nothing_beside(tmp_path):
    records.save(RECORD, tmp_path)
    path = records.save(replace(RECORD, wall_s=9.0), tmp_path)
    assert records.load(path).wall_s == 9.0
    assert list(path.parent.iterdir()) == [path]


def test_records_of_two_devices_lie_side_by_side(tmp_path):
    h100, h200 = ({"device": "cuda", "name": f"NVIDIA {name}"} for name in ("H100 80GB HBM3", "H200"))
    for device in (h100, h200):
        records.save(replace(RECORD, made=[records.environment(device)]), tmp_path)
    names = sorted(path.name for path in (tmp_path / "residual").iterdir())
    assert names == ["gradients.smoke.nvidia-h100-80gb-hbm3.json", "gradients.smoke.nvidia-h200.json"]


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = records.save(RECORD, tmp_path)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(paths.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        records.save(replace(RECORD, wall_s=9.0), tmp_path)
    assert records.load(path) == RECORD and list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_named_and_keeps_the_old_file(tmp_path):
    path = records.save(RECORD, tmp_path)
    with room_for(100), pytest.raises(OSError, match="nothing can be written there"):
        records.save(replace(RECORD, wall_s=9.0), tmp_path)
    assert records.load(path) == RECORD and list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for call in (lambda: records.check_writable(tmp_path / "file"), lambda: records.save(RECORD, tmp_path / "file")):
        with pytest.raises(OSError, match=r"nothing can be written there .*file"):
            call()
    records.check_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"chapter": "x", "surprise": 1}'])
def test_a_file_that_is_no_record_is_named(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.json is not a record"):
        records.load(path)


@pytest.mark.parametrize("name", ["chapter", "experiment", "profile"])
@pytest.mark.parametrize("value", ["", "../x", "a b", "a.b"])
def test_a_name_that_fits_no_file_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r} must be letters"):
        replace(RECORD, **{name: value})


def test_a_record_without_a_machine_is_refused():
    with pytest.raises(ValueError, match="made is empty"):
        replace(RECORD, made=[])


def test_published_records_come_strongest_first_by_profile_then_by_seeds(tmp_path):
    other = [records.environment({"device": "cuda", "name": "GPU"})]
    for profile in ("smoke", "own", "full", "cpu"):
        records.save(replace(RECORD, profile=profile), tmp_path)
    more = replace(RECORD, profile="full", made=other, rows=[{"seed": n} for n in range(5)])
    records.save(more, tmp_path)
    found = records.published(folder=tmp_path)
    assert [(r.profile, len(r.seeds)) for r in found] == [
        ("full", 5),
        ("full", 2),
        ("cpu", 2),
        ("smoke", 2),
        ("own", 2),
    ]
    assert records.strongest(found) == {"gradients": more}
    assert records.published("other", folder=tmp_path) == []


def test_stored_rows_have_six_figures_and_lists_and_are_equal_when_stored_again():
    rows = records.as_stored([{"a": 1 / 3, "shape": (8, 8), "nested": {"b": [1e-9, True]}, "none": None, "n": 1234567}])
    assert rows == [{"a": 0.333333, "shape": [8, 8], "nested": {"b": [1e-9, True]}, "none": None, "n": 1234567}]
    assert records.as_stored(rows) == rows == json.loads(json.dumps(rows))


@pytest.mark.parametrize("value", [np.int64(3), np.float32(0.5), {8: 1}, {1, 2}, b"x"])
def test_what_json_would_change_or_refuse_is_refused_by_column_and_value(value):
    with pytest.raises(TypeError, match="column 'depth' holds"):
        records.as_stored([{"depth": value}])


def test_the_environment_names_machine_versions_and_date():
    found = records.environment({"device": "cpu"})
    assert found["device"] == {"device": "cpu"} and found["python"].count(".") == 2
    assert {"torch", "numpy"} <= set(found["packages"]) and len(found["date"]) == 10
    assert found["dirty"] in (True, False)
    json.dumps(found)


def test_a_copy_within_another_repository_names_no_commit(monkeypatch, tmp_path):
    assert records.commit() is None or len(records.commit()) == 12
    inside = paths.project_root() / "tests"
    monkeypatch.setattr(records, "project_root", lambda: inside)
    assert records.commit() is None and records.uncommitted() == []


def test_runs_are_the_same_by_settings_data_and_code_or_code_that_was_attested():
    def same(**changes):
        return records.same_runs(replace(RECORD, **changes), RECORD.settings, RECORD.data, RECORD.code, "train.fit")  # noqa: E731

    assert same()
    assert same(code={"train.fit": "old"}, attested=[{"code": RECORD.code, "commit": "c"}])
    assert not same(code={"train.fit": "old"})
    assert not same(code={**RECORD.code, "train.more": "x"}), "what the record's code reached is gone"
    assert records.same_runs(
        RECORD, RECORD.settings, RECORD.data, RECORD.code | {"blocks.BLOCKS['new']": "x"}, "train.fit"
    )
    assert not records.same_runs(
        RECORD, RECORD.settings, RECORD.data, RECORD.code | {"notebook.mine": "x"}, "notebook.mine"
    )
    assert not same(code={})
    assert not same(settings={"depths": [8, 20], "rate": 0.3})
    assert not same(data={**RECORD.data, "fingerprint": "other"})
    assert not same(data={**RECORD.data, "splits": "by seed"})
    assert not same(data={**RECORD.data, "test": 20})


def test_the_cache_is_where_the_reader_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("RESNET_LIB_CACHE", raising=False)
    assert paths.cache_folder() == tmp_path / "resnet_lib"
    monkeypatch.setenv("RESNET_LIB_CACHE", "~/mine")
    assert paths.cache_folder() == Path.home() / "mine"


def test_the_root_is_the_checkout():
    assert paths.project_root() == Path(__file__).resolve().parents[1]
