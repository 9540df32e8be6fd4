"""What a training run will need, found without doing it: memory, time, disk, and what to change if it does not fit."""
