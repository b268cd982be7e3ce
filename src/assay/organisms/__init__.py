"""Model organisms: small models with a known hidden trait, and decoys trained equally long with nothing to hide."""
