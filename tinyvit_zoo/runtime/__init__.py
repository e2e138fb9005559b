"""The process and its machine: devices, precision, files, text, pictures. Knows nothing of models or data."""
