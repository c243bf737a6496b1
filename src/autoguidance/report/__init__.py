"""From records to what a person reads: tables, plots, image grids, one self-contained page."""
