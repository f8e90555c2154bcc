"""From a source's files to the event table: one source a file, no torch."""
