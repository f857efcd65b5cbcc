"""A page to view volumes and pictures: two sources and their fusion in one self-contained file.

triple.py resamples the three to one grid, pack.py quantises them for the page, page.py fills view.html. In
the browser, unpack.js inflates the voxels in workers, slices.js colours them, desk.js runs the panes (NiiVue,
niivue.js, licences beside it; programs.js keeps it from compiling what no pane draws with) and view.js the
page's controls.
"""
