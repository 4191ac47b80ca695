"""What one pass over the data collects of each site, and the amax of any row from it."""
