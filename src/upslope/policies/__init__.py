"""Policies: distributions over Gymnasium spaces, networks, and actor-critics made of both."""
