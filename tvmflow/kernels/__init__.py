"""What each operator of tvmflow's own computes: its signature (``spec``), how it stands in Relax (``call``), its oracle (``reference``)."""
