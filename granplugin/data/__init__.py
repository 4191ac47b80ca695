"""Batches: from arrays, a callable, a folder of images."""
