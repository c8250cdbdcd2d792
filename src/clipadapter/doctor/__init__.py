"""Faults in a set of labelled pictures, before or after a fit. Pictures are never changed."""

from clipadapter.doctor.diagnosis import diagnose
from clipadapter.doctor.findings import KINDS, Diagnosis, Finding, Kind, Picture, render_findings

__all__ = [
    "KINDS",
    "Diagnosis",
    "Finding",
    "Kind",
    "Picture",
    "diagnose",
    "render_findings",
]
