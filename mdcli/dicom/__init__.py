"""DICOM: headers, series, geometry, pixels and the objects that md writes. Knows no workspace."""
