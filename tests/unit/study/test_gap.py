"""A guide's record in results.json: the network's size and the distance between the models stand side by side."""

from autoguidance.study.gap import guide_record


def test_the_size_of_the_network_survives_the_figure_that_the_diagnosis_calls_size():
    diagnosis = {
        "main": "main@0.05",
        "guide": "guide-tiny@0.1:512",
        "verdict": "compatible",
        "reason": "the models differ by 0.9 of the main model's error",
        "size": 0.9,
        "correlation": 0.05,
        "correlation_se": 0.004,
        "start_weight": 1.44,
        "levels": [],
    }
    assert guide_record("tiny T/16", 0.0625, diagnosis) == {
        "guide": "tiny T/16",
        "size": "tiny",
        "share": 0.0625,
        "difference": 0.9,
        "verdict": "compatible",
        "reason": "the models differ by 0.9 of the main model's error",
        "correlation": 0.05,
        "correlation_se": 0.004,
        "start_weight": 1.44,
    }
