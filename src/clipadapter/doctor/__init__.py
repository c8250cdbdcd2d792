"""Faults in a set of labelled pictures, before or after a fit. Pictures are never changed."""

from clipadapter.doctor.diagnosis import diagnose
from clipadapter.doctor.findings import (
    KINDS,
    SEVERITIES,
    Diagnosis,
    Finding,
    FindingGroup,
    Kind,
    Picture,
    illustrate_findings,
    read_findings_css,
    render_findings,
)

__all__ = [
    "KINDS",
    "SEVERITIES",
    "Diagnosis",
    "Finding",
    "FindingGroup",
    "Kind",
    "Picture",
    "diagnose",
    "illustrate_findings",
    "read_findings_css",
    "render_findings",
]
