"""The tabs of the page: each file lays out one tab and connects its controls with what they run."""
