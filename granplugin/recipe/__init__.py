"""A recipe: YAML with line numbers, read into a strict, frozen value."""
