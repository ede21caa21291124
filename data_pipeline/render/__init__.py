"""Renders the rows of data sets, and given patches, in supervised worker processes."""
