"""From a recipe and a network's layers to the plan: one decision a site, and the rule behind it."""
