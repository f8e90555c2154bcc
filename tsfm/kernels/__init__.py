"""The selective scan and its backends."""
