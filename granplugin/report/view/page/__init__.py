"""The view of report.html: a verdict, tables of it, and the data that its charts are drawn of."""
