"""The posterior's mass that a guide may have missed: where it is, how much, and mixtures that begin there."""
