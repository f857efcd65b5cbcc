"""Blinded reader studies: doctors compare fused pictures in a browser, and statistics of their answers.

config.py and plan.py say what is asked of whom, create.py makes the study folder, only store.py accesses its
database, server.py serves the pages, export.py and the analysis read the answers.
"""
