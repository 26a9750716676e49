"""One PyTorch module per kind of block, each built from a `nas.blocks.Block` alone."""
