"""Pictures in folders: which files make a pair, and the run over all pairs."""
