"""One file a stage: what can be asked, what is read and written."""
