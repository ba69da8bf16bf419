"""What processes share by Redis: whose call is whose, stops, and the way to Redis itself."""
