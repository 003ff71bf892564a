"""What a machine has: types, probes of this machine, described machines and overrides."""
