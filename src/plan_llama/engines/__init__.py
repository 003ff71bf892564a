"""How to speak to inference engines: their arguments, their commands, what they refuse."""
