"""The bench of the simulator, `abkt bench sim`: its speed, memory and start time. Used by that verb alone."""
