"""A hospital with known hazards, written as the files a real one exports."""
