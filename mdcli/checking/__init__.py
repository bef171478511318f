"""Comparing results with a gold standard: label maps, SEG objects, the gold folder, the reports."""
