"""What a run asks of the machine: one thread at a time, signals, files that are whole or not there."""
