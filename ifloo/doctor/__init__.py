"""Floor 8: the doctor, which reports before a run what would keep the scores of a model from being valid."""

from ifloo.doctor.examine import Diagnosis, DoctorInput, examine
from ifloo.doctor.finding import Finding, Severity
from ifloo.doctor.layer_findings import diagnose

__all__ = ["Diagnosis", "DoctorInput", "Finding", "Severity", "diagnose", "examine"]
