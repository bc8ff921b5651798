"""What a run writes for people and other tools: small files, whole or not at all, and events."""
