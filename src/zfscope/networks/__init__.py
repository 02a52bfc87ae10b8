"""Networks with named layers: built, loaded, traced."""
