"""Pictures before tables: one page that shows what every method did to every case, and how it scores.

figures.py has the numbers, pictures.py what is embedded or put beside the page, plots.py the drawings,
page.py the whole; report.html, report.css, report.js and panzoom.js are filled into one file.
"""
