"""A page to view volumes and pictures: two sources and their fusion in one self-contained file.

triple.py resamples the three to one grid, pack.py quantises them for the page, page.py fills view.html. In
the browser, desk.js runs the panes (NiiVue, niivue.js, licences beside it) and view.js the page's controls.
"""
