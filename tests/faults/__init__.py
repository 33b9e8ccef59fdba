"""Programs that disturb real runs (kills, lost nodes, failing storage) and count what they lose, double or leave."""
