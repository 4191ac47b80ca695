"""Names in written files that the one who writes and the one who reads must agree on."""

CASTS = "precision"
"""The scope in the names of the casts between float32 and a lower precision: no layer's."""
