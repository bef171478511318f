"""Model cards, engines, windows and the way back to the source grid. Knows no workspace."""
