"""What a release must show before it goes live; docs/serving.md says what and why."""
