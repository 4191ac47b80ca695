"""One run: its session, its variants, what was measured of them and how long they take."""
