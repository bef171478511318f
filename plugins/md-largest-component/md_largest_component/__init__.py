"""A plugin for md: keep the largest connected component of every label."""
