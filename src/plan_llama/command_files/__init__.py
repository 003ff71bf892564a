"""Files that start an engine, read for the commands in them. Nothing of them is executed."""
