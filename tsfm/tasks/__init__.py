"""Questions asked of timelines: index stays, prediction times, labels."""
