"""Blinded reader studies: doctors compare fused pictures in a browser, and the statistics come out.

config.py and plan.py say what is asked of whom, create.py makes the study folder, store.py is the only one
that touches its database, server.py shows the pages, export.py and the analysis read what was answered.
"""
