"""Pictures before tables: one page with every method's result for every case, and its scores.

figures.py has the numbers, pictures.py what is embedded or put beside the page, plots.py the drawings,
page.py the whole; report.html, report.css, report.js and panzoom.js are filled into one file.
"""
