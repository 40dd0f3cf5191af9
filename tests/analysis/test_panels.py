"""What figures share: a panel without a line has no legend, and says nothing of it."""

import pytest
from matplotlib.figure import Figure

from worldmtp.analysis.panels import add_legend


@pytest.mark.filterwarnings("error")
def test_a_legend_of_what_has_a_label():
    axes = Figure().add_subplot()
    add_legend(axes)
    assert axes.get_legend() is None
    axes.plot([0, 1], [0, 1], label="promised")
    add_legend(axes)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["promised"]
