"""Plots and text reports of results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmlp._lazy import lazy

if TYPE_CHECKING:
    from fastmlp.reports.comparison import plot_comparison as plot_comparison
    from fastmlp.reports.confusion import plot_classes as plot_classes
    from fastmlp.reports.confusion import plot_confusion as plot_confusion
    from fastmlp.reports.curves import plot_curves as plot_curves
    from fastmlp.reports.images import plot_filters as plot_filters
    from fastmlp.reports.images import plot_maps as plot_maps
    from fastmlp.reports.images import plot_mistakes as plot_mistakes
    from fastmlp.reports.images import plot_projection as plot_projection
    from fastmlp.reports.regression import plot_predictions as plot_predictions
    from fastmlp.reports.text import classification_report as classification_report
    from fastmlp.reports.text import print_result as print_result

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "comparison": ["plot_comparison"],
        "confusion": ["plot_classes", "plot_confusion"],
        "curves": ["plot_curves"],
        "images": ["plot_filters", "plot_maps", "plot_mistakes", "plot_projection"],
        "regression": ["plot_predictions"],
        "text": ["classification_report", "print_result"],
    },
)
