"""What is written as JSON: report.json, analysis.json and what the verbs print with --json."""
