"""The command line: `main` lists the commands, and each command has a file of its own."""
