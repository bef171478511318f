"""A plugin for md with one stage."""
