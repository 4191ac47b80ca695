"""Passes that write a graph: fold, pads, lower, Q/DQ, precision."""
