"""How good a fused picture is: measures of one picture, lesions planted in its sources, scores over folders.

metrics.py has the measures of published tables. For the reader of the picture: uptake.py inverts a
palette, fidelity.py measures detail, bone, uptake and colour, planting.py puts lesions into the sources,
reader.py looks for them, lesions.py says what a fusion keeps of each.
"""
