"""The verbs, each from values to values in running order."""
