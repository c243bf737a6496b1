"""Published EDM2 files, read as data: nothing in them is ever executed."""

from autoguidance.interop.edm2.networks import read_network
from autoguidance.interop.edm2.references import PublishedReference, read_reference

__all__ = ["PublishedReference", "read_network", "read_reference"]
