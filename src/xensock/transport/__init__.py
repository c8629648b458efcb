"""How pages, events and a store cross the boundary between a frontend and a backend."""
