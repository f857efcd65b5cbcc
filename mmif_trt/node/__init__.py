"""A DICOM node: receives series by C-STORE and sends fused series; nothing is lost or sent twice."""
