"""A plugin for md: models of Clara Train, in its Medical Model Archive (MMAR)."""
