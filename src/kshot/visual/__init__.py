"""Pictures as tokens: the VQ tokenizer, visual sentences and the store that keeps them (LVM, arXiv 2312.00785)."""
