"""Augmentation: of whole batches on the device, and of single Pillow images when streaming."""
