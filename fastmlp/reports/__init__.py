"""What a person gets to see: pictures, tables, text."""
