"""Commands for scanner consoles: volumes from files to files, whole studies, and a DICOM node."""
