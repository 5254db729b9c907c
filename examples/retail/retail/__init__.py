"""A year of grocery shopping: `preprocess` cleans the tables, `train` learns who will buy in each department."""
