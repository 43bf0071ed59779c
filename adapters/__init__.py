"""Adapt a tower: PEFT, dense heads, projectors, text, a place in a VLM."""
