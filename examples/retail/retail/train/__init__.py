"""From the clean tables to a model for each department, its scores and a report."""
