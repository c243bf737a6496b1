"""The toy's pictures: coordinates of pixels, and contours that hold the mass that they claim."""

import numpy as np
import torch
from matplotlib.figure import Figure

from autoguidance.models.toy_mixture import toy_mixture
from autoguidance.report.toy_figures import TrueDensity, View, save_figure


def test_pixels_and_images_have_the_same_orientation():
    view = View((1.0, 2.0), 0.5, 4)
    points = view.points()
    x, y = view.axes()
    assert view.extent == (0.5, 1.5, 1.5, 2.5)
    np.testing.assert_allclose(x, [0.625, 0.875, 1.125, 1.375])
    np.testing.assert_allclose(view.image(points[:, 0]), np.tile(x, (4, 1)))
    np.testing.assert_allclose(view.image(points[:, 1]), np.tile(y[:, None], (1, 4)))


def test_the_area_above_the_level_holds_99_percent_of_the_mass():
    sigma = 0.1
    truth = TrueDensity(View((0.4, 0.42), 1.5, 300), "A", sigma)
    pixel = (2 * 1.5 / 300) ** 2
    mass = np.exp(truth.image) * pixel
    assert abs(mass.sum() - 1) < 0.002
    assert abs(mass[truth.image >= truth.level].sum() - 0.99) < 0.004


def test_the_drawn_contour_encloses_those_samples():
    truth = TrueDensity(View((0.4, 0.42), 1.5, 300), "A", 0.1)
    axes = Figure().subplots()
    truth.draw(axes)
    (patch,) = axes.patches
    x = toy_mixture("A").sample(4000, torch.Generator().manual_seed(0), 0.1).double().numpy()
    inside = patch.get_path().contains_points(x)
    assert abs(inside.mean() - 0.99) < 0.01


def test_the_same_figure_gives_the_same_files(tmp_path):
    contents = []
    for attempt in ("a", "b"):
        figure = Figure(figsize=(2, 2))
        figure.subplots().plot([0, 1], [1, 0])
        files = save_figure(figure, tmp_path / attempt / "picture")
        assert [file.name for file in files] == ["picture.png", "picture.svg"]
        contents.append(files[0].read_bytes())
    assert contents[0] == contents[1]
