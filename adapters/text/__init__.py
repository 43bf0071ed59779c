"""Teach a frozen tower the space of texts: dino.txt's two blocks, a text encoder, a contrastive loss."""
