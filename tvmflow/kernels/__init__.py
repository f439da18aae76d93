"""What each operator of our own computes: its signature (spec), how it stands in Relax (call), its oracle (reference)."""
