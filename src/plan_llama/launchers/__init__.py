"""Files that start an engine exactly as planned."""
