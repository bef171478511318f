"""Volume files, resampling, labels and pictures. Knows no workspace."""
