"""The command line: wires the parts and prints. One module per command; only here is anything printed."""
