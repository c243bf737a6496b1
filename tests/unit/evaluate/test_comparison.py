"""Result files side by side."""

import json

import pytest

from autoguidance.errors import UserError
from autoguidance.evaluate import Protocol, compare_results, read_result
from autoguidance.storage import write_json

PROTOCOL = Protocol(
    features="pixels", features_sha256="a" * 64, num_images=100, reference="r", reference_sha256="b" * 64, num_real=200
)


@pytest.fixture
def write(tmp_path):
    def result(name, *rows, **changes):
        content = {"protocol": {**PROTOCOL.to_dict(), **changes}, "rows": list(rows)}
        write_json(tmp_path / name, content)
        return read_result(tmp_path / name)

    return result


def test_rows_beside_each_other(write):
    a = write("a.json", {"method": "unguided", "fd": 2.0, "fd_std": 0.1, "kid": 0.01, "features": {}})
    b = write(
        "b.json", {"method": "autoguidance", "weight": 2.0, "fd": 1.5, "fd_min": 1.4}, {"method": "cfg"}, repeats=3
    )
    found = compare_results([a, b])
    assert found["different"] == []
    assert [row["fd_change"] for row in found["rows"]] == [None, -0.25, None]
    assert found["rows"][1] == {
        "result": b.name, "method": "autoguidance", "weight": 2.0, "fd": 1.5, "fd_min": 1.4, "fd_change": -0.25
    }  # fmt: skip
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    "field, value",
    [
        ("num_images", 50),
        ("features_sha256", "c" * 64),
        ("reference_sha256", "d" * 64),
        ("class_sampling", "balanced"),
        ("num_real", 3),
        ("resize", "bilinear"),
    ],
)
def test_unlike_protocols_are_refused_by_name_unless_forced(write, field, value):
    a, b = write("a.json", {"method": "x", "fd": 1.0}), write("b.json", {"method": "x", "fd": 1.0}, **{field: value})
    with pytest.raises(UserError, match=rf"a\.json and .*b\.json: .*{field}: .* against ") as error:
        compare_results([a, b])
    assert "\n" not in str(error.value)
    assert compare_results([a, b], force=True)["different"] == [field]


def test_a_single_row_is_no_comparison(write):
    with pytest.raises(UserError, match="two rows"):
        compare_results([write("a.json", {"method": "x", "fd": 1.0})])


@pytest.mark.parametrize(
    "content, message",
    [
        ([], "holds no protocol"),
        ({"rows": []}, "holds no protocol"),
        ({"protocol": {}, "rows": []}, "holds no rows"),
        ({"protocol": {}, "rows": [3]}, "holds no rows"),
        ({"protocol": {}, "rows": [{}]}, "incomplete"),
        ({"protocol": PROTOCOL.to_dict(), "rows": [{"fd": "much"}]}, "fd is 'much'"),
        ({"protocol": {**PROTOCOL.to_dict(), "num_images": "many"}, "rows": [{"fd": 1.0}]}, "damaged"),
    ],
)
def test_damaged_results_are_refused(tmp_path, content, message):
    write_json(tmp_path / "x.json", content)
    with pytest.raises(UserError, match=rf"x\.json.*{message}"):
        read_result(tmp_path / "x.json")
