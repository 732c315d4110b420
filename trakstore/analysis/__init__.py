"""What scores say: where they go, and how they move over epochs."""
