"""A torch model: built, traced, its batch norms folded, its weights described."""
