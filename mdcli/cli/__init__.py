"""The terminal: arguments, lines, progress and statuses. Nothing below imports this."""
