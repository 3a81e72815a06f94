"""Whether a completion gives the right answer: extraction, decoration, reading, comparison. Shipped rewards use it."""
