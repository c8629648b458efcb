"""PV Calls: the frontend issues socket calls over rings, the backend serves them."""
