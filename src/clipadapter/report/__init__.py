"""An HTML page about a fitted model: its accuracy, its mistakes, and how certain both are."""

from clipadapter.report.report import Report, make_report

__all__ = ["Report", "make_report"]
