"""A plugin for napari: choose two layers, fuse them, see the result as a layer.

napari.yaml is its manifest (npe2); layers.py has what it does, without Qt; widget.py the panel.
"""
