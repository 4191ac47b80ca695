"""What stands in a graph, read by code that shares nothing with the passes that wrote it."""
