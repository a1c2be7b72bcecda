"""Figures say in words what they show, and drawings are kept as vectors."""

from __future__ import annotations

import base64

import matplotlib.pyplot as plt
import numpy as np
import pytest

from echovlsm.base import figures


@pytest.fixture
def chart() -> plt.Figure:
    figure, axes = plt.subplots()
    axes.plot([1, 2], [0.5, 0.9], label="validation")
    axes.set(xlabel="epoch", ylabel="Dice")
    axes.set_title("Best Dice 0.900", loc="left")
    axes.legend()
    figures.heading(figure, "Training helps.")
    figures.stamp(figure, "demo", "phantom-demo", "phantom")
    yield figure
    plt.close(figure)


def test_the_text_has_finding_axes_legend_and_stamp(chart: plt.Figure) -> None:
    assert figures.describe(chart) == (
        "Training helps. Best Dice 0.900. across: epoch, upwards: Dice. shown: validation. "
        "scale: demo · cohort: phantom-demo (phantom) · shows that the machinery works, "
        "says nothing about hearts."
    )


def test_a_chart_is_published_as_a_drawing_with_its_text(chart: plt.Figure) -> None:
    svg, told = figures._svg(chart)
    assert svg.startswith("<?xml")
    assert told == {"alt": figures.describe(chart)}
    assert figures._svg(chart)[0] == svg
    png, same = figures._png(chart)
    assert base64.b64decode(png).startswith(b"\x89PNG")
    assert same == told


def test_images_and_crowds_stay_pixels(chart: plt.Figure) -> None:
    chart.axes[0].plot(np.zeros(figures.MAX_VECTOR_POINTS))
    assert figures._svg(chart) is None
    figure, axes = plt.subplots()
    figures.show_image(axes, np.zeros((4, 4), dtype=np.uint8))
    assert figures._svg(figure) is None
    plt.close(figure)


def test_a_kernel_gets_the_text_with_the_image(chart: plt.Figure) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    try:
        figures.stamp(chart, "demo", "phantom-demo", "phantom")
        data, metadata = shell.display_formatter.format(chart)
        assert {"image/png", "image/svg+xml"} <= set(data)
        assert metadata["image/png"]["alt"].startswith("Training helps.")
    finally:
        InteractiveShell.clear_instance()
