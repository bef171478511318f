"""`md`: from DICOM in to DICOM out, in small stages that a shell, a Makefile or CI can chain."""

__version__ = "0.1.0"
