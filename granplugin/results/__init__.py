"""What a run makes and measures, as values: below the report, which is typed against them."""
