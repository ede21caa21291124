"""Parameter specs: the meaning of each column of a row, encoding, drawing, and headings for people."""
