"""Commands that are not stages: they look, compare and measure."""
