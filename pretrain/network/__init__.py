"""Student and teacher: what they are made of and what they start from."""
