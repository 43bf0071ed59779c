"""Views of a picture: what is drawn, and how it is cut."""
