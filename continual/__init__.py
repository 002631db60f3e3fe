"""The loop: what people did with the live release's answers becomes a head that is nearer to what they meant."""
