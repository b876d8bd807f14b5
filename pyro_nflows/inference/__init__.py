"""What a user runs: fits of a model, the objectives of a loop of one's own, and checks over many data sets."""
