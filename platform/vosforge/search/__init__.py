"""Search: trials on Ray Tune, and the choice of an ensemble's members."""
