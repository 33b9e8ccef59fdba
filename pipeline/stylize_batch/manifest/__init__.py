"""Manifests: building and checking them, what the columns mean, who a pair is, and how pairs are cut into shards."""
