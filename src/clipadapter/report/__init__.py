"""One page about a fitted model: what it gets right and wrong, how sure one can be of that, and why."""

from clipadapter.report.report import Report, make_report

__all__ = ["Report", "make_report"]
