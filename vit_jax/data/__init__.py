"""Sources of images, host transforms, and deterministic global batches."""
