"""What an engine made of a file: a verdict per site, lint, and two engines side by side."""
