"""`md`: from DICOM in to DICOM out, in small stages that a shell, a Makefile or CI can chain."""

import os

__version__ = "0.1.0"

# onnxruntime's wheels report to their maker as soon as they are imported. A tool for patients' images sends nothing anywhere.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
