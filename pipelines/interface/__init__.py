"""What a user types and sees: keys and their help, errors, progress, tables, the page of a report. Knows no data."""
