"""Which results may be compared."""

import json

import pytest

from autoguidance.errors import UserError
from autoguidance.evaluate.protocol import COMPARED, Protocol, require_comparable

FIELDS = {
    "features": "classifier",
    "features_sha256": "a" * 64,
    "num_images": 1000,
    "reference": "digits",
    "reference_sha256": "b" * 64,
    "num_real": 1797,
    "class_sampling": "random",
}


def test_equal_protocols_compare_whatever_the_seeds_and_solver():
    a = Protocol(**FIELDS, seeds=("0-999",), solver={"name": "heun"})
    b = Protocol(**FIELDS, seeds=("1000-1999", "2000-2999"), repeats=2)
    assert require_comparable(a, b) == ()


@pytest.mark.parametrize("name", COMPARED)
def test_each_compared_field_is_named(name):
    other = {"num_images": 500, "num_real": 9}.get(name, "other")
    a, b = Protocol(**FIELDS), Protocol(**{**FIELDS, name: other})
    with pytest.raises(UserError, match=f"{name}: .* against {other}") as error:
        require_comparable(a, b)
    assert not any(field in str(error.value) for field in COMPARED if field != name)
    assert require_comparable(a, b, force=True) == (name,)


def test_round_trip_through_json():
    protocol = Protocol(
        **FIELDS, seeds=("0-9",), solver={"num_steps": 12}, other_features={"pixels": "c"}, notes=("n",)
    )
    content = json.loads(json.dumps(protocol.to_dict(), allow_nan=False))
    assert Protocol.from_dict({**content, "field_of_a_later_version": 1}) == protocol
    assert content["seeds"] == ["0-9"]


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="num_images is 1"):
        Protocol(**{**FIELDS, "num_images": 1})
    with pytest.raises(UserError, match="seeds of 1 repeats for 3"):
        Protocol(**FIELDS, seeds=("0-9",), repeats=3)
    with pytest.raises(UserError, match="incomplete"):
        Protocol.from_dict({"features": "classifier"})
