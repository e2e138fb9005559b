"""Hand weights on: exported programs, cards, repositories on the Hugging Face Hub."""
