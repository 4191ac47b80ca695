"""Building and measuring on another machine: the folder that goes there, and what comes back."""
