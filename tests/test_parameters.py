"""A chapter takes the parameters it declares, of the types it declares, and no others."""

import pytest

from resnet_lib import parameters

DECLARED = """
seeds: int = 3
train_size: int = 0
rate: float = 0.5
name: str = "digits"
resume: bool = False
depths: list[int] = [8, 20]
rates: list[float] = [0.1]
note: str | None = None
_private = 1
"""


def check(injected=""):
    """What a notebook's namespace holds after the parameters cell and papermill's injected one."""
    namespace = {"In": ["", DECLARED, f"# Parameters\n{injected}"], "Out": {}, "left_from_before": 3}
    exec(DECLARED, namespace)
    exec(injected, namespace)
    return parameters.check(namespace)


def test_the_declared_values_come_back_in_order():
    assert check() == {
        "seeds": 3,
        "train_size": 0,
        "rate": 0.5,
        "name": "digits",
        "resume": False,
        "depths": [8, 20],
        "rates": [0.1],
        "note": None,
    }
    assert list(check("rate = 1.5")) == list(check())
    assert check("rate = 1.5")["rate"] == 1.5


def test_whole_numbers_are_fine_where_floats_are_declared():
    assert check("rate = 1; rates = [1, 0.5]")["rates"] == [1, 0.5]


@pytest.mark.parametrize(
    ("injected", "message"),
    [
        (
            "sedes = 5",
            "unknown parameter 'sedes'; this chapter declares seeds: int, train_size: int, rate: float, name",
        ),
        ("epochs = {}", "unknown parameter 'epochs'"),
        ("seeds = 2.0", "parameter seeds=2.0 must be of type int, not float"),
        ("seeds = '5'", "parameter seeds='5' must be of type int, not str"),
        ("seeds = True", "parameter seeds=True must be of type int, not bool"),
        ("seeds = None", "parameter seeds=None must be of type int, not NoneType"),
        ("rate = True", "parameter rate=True must be of type float, not bool"),
        ("name = 1", "parameter name=1 must be of type str, not int"),
        ("resume = 1", "parameter resume=1 must be of type bool, not int"),
        ("depths = 8", r"parameter depths=8 must be of type list\[int\], not int"),
        ("depths = [8, 2.5]", "parameter depths=2.5 must be of type int, not float; this chapter declares"),
        ("depths = [True]", "parameter depths=True must be of type int, not bool"),
        ("seeds = 0", "parameter seeds=0 must be above 0 and finite; this chapter declares"),
        ("seeds = -1", "parameter seeds=-1 must be above 0 and finite"),
        ("rate = float('nan')", "parameter rate=nan must be above 0 and finite"),
        ("rate = float('inf')", "parameter rate=inf must be above 0 and finite"),
        ("rates = [0.1, 0.0]", "parameter rates=0.0 must be above 0 and finite"),
        ("rates = []", r"parameter rates=\[\] must hold at least one value"),
        ("train_size = -1", "parameter train_size=-1 must be at least 0 and finite"),
        ("rates = ['a']", "parameter rates='a' must be of type float, not str"),
    ],
)
def test_what_is_not_declared_or_of_another_type_is_named(injected, message):
    with pytest.raises(ValueError, match=message):
        check(injected)


def test_an_annotation_may_be_a_type_or_its_name():
    assert parameters.check({"__annotations__": {"n": "int", "m": int}, "n": 1, "m": 2}) == {"n": 1, "m": 2}
    with pytest.raises(ValueError, match="parameter n=0.5 must be of type int"):
        parameters.check({"__annotations__": {"n": "int"}, "n": 0.5})
