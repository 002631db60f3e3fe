"""Dataset to run: reads a domain's dataset, tunes the instruction head and the score weights, writes a run folder."""
