"""The step, the program a run compiles, and the loop."""
