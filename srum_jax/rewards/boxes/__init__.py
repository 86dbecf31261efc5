"""Where to ask about an image: regions (`regions.py`) and everyone who proposes some."""
