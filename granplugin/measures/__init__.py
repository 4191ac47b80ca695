"""Figures and what they prove: metrics, intervals, timing; numbers in, numbers out."""
