"""The backend: guests and what serves them."""
