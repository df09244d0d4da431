"""The released program, quirks included, alone: nothing else depends on it but `tl`."""
