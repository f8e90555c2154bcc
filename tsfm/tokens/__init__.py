"""From events to the packed token store."""
