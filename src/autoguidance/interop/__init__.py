"""Files and pipelines of other programs."""
