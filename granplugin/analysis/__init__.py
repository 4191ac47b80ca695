"""The stages of analyze: each a function from values to a value."""
