"""One compile from end to end: what was asked for, the runner, and what is said of it."""
