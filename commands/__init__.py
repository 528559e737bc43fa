"""The commands: each module parses its arguments, calls the stages, and shows the result."""
