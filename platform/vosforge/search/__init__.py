"""Search: sweeps of trials on Ray Tune, and ensembles of what they found."""
