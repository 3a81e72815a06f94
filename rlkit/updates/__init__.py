"""From scored groups or rows of data to optimizer steps."""
