"""Volumes and studies: series and their pairs, reading in a child process, the run over cases, outputs."""
