"""What is wrong with a set of labelled pictures, before or after a fit: found, shown, never changed."""

from clipadapter.doctor.diagnosis import diagnose
from clipadapter.doctor.findings import KINDS, SEVERITIES, Diagnosis, Finding, Kind, Picture
from clipadapter.doctor.page import Exhibit, Group, findings_css, findings_html, illustrated

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
