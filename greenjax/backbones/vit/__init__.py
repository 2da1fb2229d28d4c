"""ViT (arXiv 2010.11929), and with its own decoder the masked autoencoder of arXiv 2111.06377."""
