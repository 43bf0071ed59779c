"""A run's tower in the formats of other software: `writing` is the way in, `formats` the table of them."""
