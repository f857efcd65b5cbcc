"""A page to look at volumes and pictures: two sources and their fusion in one file that needs nothing else.

triple.py brings the three onto one grid, pack.py quantises them for the page, page.py fills view.html. In the
browser desk.js holds the panes (NiiVue, niivue.js, licences beside it) and view.js the page's controls.
"""
