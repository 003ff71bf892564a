"""How fast a placement runs, from what a token reads and computes on each device. Pure: no probes."""
