"""Values -> schemas: what was built, measured and found, as it is written."""
