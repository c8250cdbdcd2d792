"""What is wrong with a set of labelled pictures, before or after a fit: found, shown, never changed."""

from clipadapter.doctor._diagnose import diagnose
from clipadapter.doctor._findings import KINDS, SEVERITIES, Diagnosis, Finding, Kind, Picture
from clipadapter.doctor._page import Exhibit, Group, findings_css, findings_html, illustrated

__all__ = [
    "KINDS",
    "SEVERITIES",
    "Diagnosis",
    "Exhibit",
    "Finding",
    "Group",
    "Kind",
    "Picture",
    "diagnose",
    "findings_css",
    "findings_html",
    "illustrated",
]
