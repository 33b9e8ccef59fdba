"""Training a decoder (paper §6.2). Needs neither Ray nor a cluster."""
