"""A DICOM node: series in by C-STORE, fused series out by C-STORE, nothing lost and nothing sent twice."""
