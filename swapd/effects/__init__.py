"""What acts: each file does one kind of thing to the world, and decides nothing."""
