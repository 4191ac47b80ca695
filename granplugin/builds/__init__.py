"""How an engine is built as the recipe says, and which layer a build failed at."""
