"""Floor 8: the doctor, which says before a run what stands between a model and scores that hold."""

from ifloo.doctor.examine import Diagnosis, DoctorInput, examine
from ifloo.doctor.finding import Finding, Severity
from ifloo.doctor.layer_findings import diagnose

__all__ = ["Diagnosis", "DoctorInput", "Finding", "Severity", "diagnose", "examine"]
