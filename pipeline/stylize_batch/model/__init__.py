"""The network and its mathematics: torch only, no storage, no Ray."""
