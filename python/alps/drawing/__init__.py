"""What pictures are made of; needs matplotlib."""
