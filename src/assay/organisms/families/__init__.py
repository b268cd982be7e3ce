"""One file per family; importing this package registers all of them."""

from assay.organisms.families import backdoor, decoys, denied, liar, loyalty, sandbag

__all__ = ["backdoor", "decoys", "denied", "liar", "loyalty", "sandbag"]
