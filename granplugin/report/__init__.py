"""What a run says: report.json's schema, the terminal table and Markdown."""
